// Package config is the server's configuration as the rest of the program
// reads it: plain values, complete and checked. Package manifest reads it from
// YAML; the processes hand it to each other as JSON.
package config

import (
	"fmt"
	"path/filepath"
	"time"
)

// Config is /etc/serai/serai.yaml with its defaults filled in.
type Config struct {
	StateDir string `json:"stateDir"`
	RunDir   string `json:"runDir"`
	LogDir   string `json:"logDir"`
	// CgroupRoot is the name of our group beneath the machine's (v1), or
	// beneath the delegated unit or the root (v2).
	CgroupRoot string   `json:"cgroupRoot"`
	Listen     Listen   `json:"listen"`
	Accounts   Accounts `json:"accounts"`
	Users      Users    `json:"users"`
	Mail       Mail     `json:"mail"`
	// AccessLog is the format of the sites' access logs: combined or json.
	AccessLog string            `json:"accessLog"`
	Zygotes   map[string]Zygote `json:"zygotes"`
	// Libexec is the directory of serai-priv, seraid and serai-proxy.
	Libexec string `json:"libexec"`
}

// Listen are the addresses of the front proxy, as host:port.
type Listen struct {
	HTTP  []string `json:"http"`
	HTTPS []string `json:"https"`
}

// Accounts says which uids are ours to use.
type Accounts struct {
	Range  Range  `json:"range"`  // for accounts we create, and our reserved ids
	Adopt  Range  `json:"adopt"`  // accounts that exist and may become tenants; empty is none
	Prefix string `json:"prefix"` // before the tenant's name in the name of the account
	Home   string `json:"home"`   // directory of the homes
}

// Users are the system accounts of our own processes.
type Users struct {
	Daemon string `json:"daemon"` // seraid
	Proxy  string `json:"proxy"`  // serai-proxy
	Admin  string `json:"admin"`  // group of operators
}

// Mail says where the tenants' mail goes.
type Mail struct {
	Relay string `json:"relay"` // host:port of an SMTP server
}

// Zygote is a set of modules that are loaded once for all tenants.
type Zygote struct {
	Modules []string      `json:"modules"`
	Restart time.Duration `json:"restart"`
	// OnDemand lets it start when the first site that names it is set.
	OnDemand bool `json:"onDemand,omitempty"`
}

// A Range of uids, both ends included. The zero Range is empty.
type Range struct {
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

// Reserved is how many ids at the end of Accounts.Range are ours: the zygotes
// run under the last one.
const Reserved = 16

// Empty reports whether no id is in the range.
func (r Range) Empty() bool { return r == Range{} }

// Has reports whether id is in the range.
func (r Range) Has(id uint32) bool { return !r.Empty() && r.First <= id && id <= r.Last }

// Meets reports whether the two ranges share an id.
func (r Range) Meets(o Range) bool {
	return !r.Empty() && !o.Empty() && r.First <= o.Last && o.First <= r.Last
}

func (r Range) String() string {
	if r.Empty() {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ZygoteUID is the id the zygotes run under.
func (a Accounts) ZygoteUID() uint32 { return a.Range.Last }

// Tenant reports whether a tenant may have this uid.
func (a Accounts) Tenant(uid uint32) bool {
	return a.Adopt.Has(uid) || a.Range.Has(uid) && uid <= a.Range.Last-Reserved
}

// The paths that are derived, the same in all processes.

// APISocket is the API's unix socket, open to all: the caller's uid decides.
func (c *Config) APISocket() string { return filepath.Join(c.RunDir, "api.sock") }

// ProxySocket is where seraid reaches the front proxy.
func (c *Config) ProxySocket() string { return filepath.Join(c.RunDir, "proxy.sock") }

// SitesDir holds the sites' listeners; only root and the proxy can enter it.
func (c *Config) SitesDir() string { return filepath.Join(c.RunDir, "sites") }

// SiteSocket is the listener of a site, by the site's number.
func (c *Config) SiteSocket(site uint32) string {
	return filepath.Join(c.SitesDir(), fmt.Sprintf("%d.sock", site))
}

// MailLogDir holds the log of a tenant's mail.
func (c *Config) MailLogDir(tenant string) string { return filepath.Join(c.LogDir, "mail", tenant) }

// MailSpool holds messages on their way that are too large for memory.
func (c *Config) MailSpool() string { return filepath.Join(c.StateDir, "state") }

// CatalogueDir holds the scripts of the operator's catalogue, which tenants
// may read.
func (c *Config) CatalogueDir() string { return filepath.Join(c.StateDir, "catalogue") }

// Database is the SQLite file.
func (c *Config) Database() string { return filepath.Join(c.StateDir, "state", "serai.db") }

// SiteLogDir holds what a site's processes wrote, by seraid. The proxy's
// access logs of the site lie in AccessLogDir.
func (c *Config) SiteLogDir(tenant string) string {
	return filepath.Join(c.LogDir, "sites", tenant)
}

// AccessLogDir holds the access logs of a tenant's sites, written by the proxy.
func (c *Config) AccessLogDir(tenant string) string {
	return filepath.Join(c.LogDir, "access", tenant)
}
