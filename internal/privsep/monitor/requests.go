package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/internal/privsep"
)

// requests is everything the monitor will do for a peer. A new row is a
// security decision: it is written up in
// docs/decisions/0002-privileged-requests.md before it is added here.
var requests = map[string]rule{
	privsep.OpState:         row(seraid, 0, (*Monitor).mayAlways, (*Monitor).doState),
	privsep.OpCreateAccount: row(seraid, 0, (*Monitor).mayCreateAccount, (*Monitor).doCreateAccount),
	privsep.OpLookupAccount: row(seraid, 0, (*Monitor).mayLookupAccount, (*Monitor).doLookupAccount),
	privsep.OpRemoveAccount: row(seraid, 0, (*Monitor).mayRemoveAccount, (*Monitor).doRemoveAccount),
	privsep.OpSetTenant:     row(seraid, 0, (*Monitor).maySetTenant, (*Monitor).doSetTenant),
	privsep.OpDropTenant:    row(seraid, 0, (*Monitor).isTenant, (*Monitor).doDropTenant),
	privsep.OpSetSite:       row(seraid, 0, (*Monitor).maySetSite, (*Monitor).doSetSite),
	privsep.OpDropSite:      row(seraid, 0, (*Monitor).mayDropSite, (*Monitor).doDropSite),
	privsep.OpLaunch:        row(seraid, 0, (*Monitor).mayLaunch, (*Monitor).doLaunch),
	privsep.OpStop:          row(seraid, 0, (*Monitor).isSite, (*Monitor).doStop),
	privsep.OpRun:           row(seraid, 0, (*Monitor).mayRun, (*Monitor).doRun),
	privsep.OpEndTask:       row(seraid, 0, (*Monitor).mayEndTask, (*Monitor).doEndTask),
	privsep.OpLogs:          row(seraid, 0, (*Monitor).hasLogs, (*Monitor).doLogs),
	privsep.OpSize:          row(seraid, 0, (*Monitor).isWorkers, (*Monitor).doSize),
	privsep.OpSetRoutes:     row(seraid, 1, (*Monitor).mayAlways, (*Monitor).doSetRoutes),
	privsep.OpRoutes:        row(proxy, 0, (*Monitor).hasRoutes, (*Monitor).doRoutes),
	privsep.OpFiles:         row(proxy, 0, (*Monitor).hasFiles, (*Monitor).doFiles),
	privsep.OpCheckListener: row(proxy, 0, (*Monitor).isSite, (*Monitor).doCheckListener),
	privsep.OpKillWorker:    row(proxy, 0, (*Monitor).mayKillWorker, (*Monitor).doKillWorker),
	privsep.OpAskWorker:     row(proxy, 0, (*Monitor).isWorkers, (*Monitor).doAskWorker),
}

// The names of the peers are those of their programs.
const (
	seraid = "seraid"
	proxy  = "serai-proxy"
)

// A rule is one row of requests: who may ask, how many descriptors come with
// it, and what is done.
type rule struct {
	from  string
	files int
	do    func(*Monitor, *request) (answer, error)
}

// A request under way. A do that keeps a descriptor takes it out of files.
type request struct {
	waiter
	args  json.RawMessage
	files []int
}

// An answer to a request; one that is given later was noted as a waiter.
type answer struct {
	body  any
	file  fd   // stays the monitor's
	once  bool // close file after sending
	later bool
}

// none is the arguments of a request without any.
type none struct{}

// row makes a rule: the arguments are decoded strictly, check refuses and
// touches nothing, do does it.
func row[A any](from string, files int, check func(*Monitor, *A) error, do func(*Monitor, *request, *A) (answer, error)) rule {
	return rule{from, files, func(m *Monitor, r *request) (answer, error) {
		a := new(A)
		if err := privsep.Strict(r.args, a); err != nil {
			return answer{}, err
		}
		if err := check(m, a); err != nil {
			return answer{}, err
		}
		return do(m, r, a)
	}}
}

// serve does what a peer's packet asks for. An error is a breach.
func (m *Monitor) serve(p *peer, text []byte, files []int) error {
	msg, err := privsep.DecodeRequest(text)
	if err != nil {
		privsep.CloseAll(files)
		return err
	}
	r := &request{waiter{p.Name, p.Gen, msg.ID}, msg.Args, files}
	defer func() { privsep.CloseAll(r.files) }()
	rule, ok := requests[msg.Op]
	switch {
	case !ok:
		return fmt.Errorf("%w: unknown request %.40q", privsep.ErrBreach, msg.Op)
	case rule.from != p.Name:
		return fmt.Errorf("%w: %s is not for %s to ask", privsep.ErrBreach, msg.Op, p.Name)
	case len(files) != rule.files:
		return fmt.Errorf("%w: %s with %d descriptors", privsep.ErrBreach, msg.Op, len(files))
	}
	a, err := rule.do(m, r)
	switch {
	case errors.Is(err, privsep.ErrBreach):
		return err
	case err != nil:
		m.refuse(r.waiter, msg.Op, err)
	case !a.later:
		m.reply(r.waiter, a)
	}
	return nil
}

func (m *Monitor) mayAlways(*none) error { return nil }

func (m *Monitor) doState(r *request, _ *none) (answer, error) {
	var all []privsep.State
	for _, t := range m.Tenants {
		all = append(all, privsep.State{Tenant: &t.Tenant})
	}
	for _, s := range m.Sites {
		if !s.Dropping {
			all = append(all, privsep.State{Site: s.state(time.Now())})
		}
	}
	for i, st := range all {
		m.send(r.waiter, privsep.Reply{ID: r.ID, More: i < len(all)-1}, st, 0)
	}
	if len(all) == 0 {
		m.send(r.waiter, privsep.Reply{ID: r.ID}, nil, 0)
	}
	return answer{later: true}, nil
}

var accountName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

func (m *Monitor) mayCreateAccount(a *privsep.CreateAccount) error {
	if !accountName.MatchString(a.Name) {
		return serai.Errorf(serai.Invalid, "%.40q is no name for an account", a.Name)
	}
	return m.ownUID(a.UID)
}

// ownUID refuses uids of accounts that are not ours to make and remove.
func (m *Monitor) ownUID(uid uint32) error {
	if a := m.Config.Accounts; !a.Range.Has(uid) || !a.Tenant(uid) {
		return serai.Errorf(serai.Denied, "uid %d is not one of accounts.range for tenants", uid)
	}
	return nil
}

func (m *Monitor) doCreateAccount(r *request, a *privsep.CreateAccount) (answer, error) {
	m.queue(account.HelperCreate, &r.waiter, account.CreateArgs{Accounts: m.Config.Accounts, UID: a.UID, Name: a.Name})
	return answer{later: true}, nil
}

func (m *Monitor) mayLookupAccount(a *privsep.LookupAccount) error {
	if a.Name == "" || len(a.Name) > 256 {
		return serai.Errorf(serai.Invalid, "%.40q is no name of an account", a.Name)
	}
	return nil
}

func (m *Monitor) doLookupAccount(_ *request, a *privsep.LookupAccount) (answer, error) {
	info, err := account.LookupName(a.Name)
	if err == nil {
		err = account.CheckAdopt(m.Config.Accounts, info)
	}
	if err == nil && !m.Config.Accounts.Adopt.Has(info.UID) {
		err = serai.Errorf(serai.Denied, "uid %d of %s is not within accounts.adopt", info.UID, info.Name)
	}
	if err != nil {
		return answer{}, err
	}
	return answer{body: accountInfo(info)}, nil
}

func accountInfo(i account.Info) privsep.AccountInfo {
	return privsep.AccountInfo{UID: i.UID, GID: i.GID, Name: i.Name, Home: i.Home}
}

func (m *Monitor) mayRemoveAccount(a *privsep.RemoveAccount) error {
	if m.Tenants[a.UID] != nil {
		return serai.Errorf(serai.Conflict, "uid %d is a tenant's: drop the tenant first", a.UID)
	}
	return m.ownUID(a.UID)
}

func (m *Monitor) doRemoveAccount(r *request, a *privsep.RemoveAccount) (answer, error) {
	m.queue(account.HelperRemove, &r.waiter, account.RemoveArgs{Accounts: m.Config.Accounts, UID: a.UID, Purge: a.Purge})
	return answer{later: true}, nil
}

func (m *Monitor) maySetTenant(a *privsep.Tenant) error {
	if !m.Config.Accounts.Tenant(a.UID) {
		return serai.Errorf(serai.Denied, "uid %d is in none of the ranges of tenants", a.UID)
	}
	if a.Memory < 0 || a.CPU < 0 || a.Processes < 0 {
		return serai.Errorf(serai.Invalid, "a limit of uid %d is negative", a.UID)
	}
	if t := m.Tenants[a.UID]; t != nil && len(t.Dropped) > 0 {
		return serai.Errorf(serai.Conflict, "uid %d is being dropped", a.UID)
	}
	return nil
}

func (m *Monitor) doSetTenant(_ *request, a *privsep.Tenant) (answer, error) {
	info, err := account.LookupUID(a.UID)
	if err != nil {
		return answer{}, err
	}
	t := m.Tenants[a.UID]
	if t == nil {
		t = &tenant{sites: make(map[uint32]*site)}
	}
	if t.Live {
		if err := m.cgroups.SetTenant(a.UID, limits(*a)); err != nil {
			return answer{}, fmt.Errorf("set limits of uid %d: %w", a.UID, err)
		}
	}
	t.Tenant, t.Name, t.GID, t.Home = *a, info.Name, info.GID, info.Home
	m.Tenants[a.UID] = t
	return answer{}, nil
}

func (m *Monitor) isTenant(a *privsep.TenantRef) error {
	if m.Tenants[a.UID] == nil {
		return serai.Errorf(serai.NotFound, "uid %d is no tenant", a.UID)
	}
	return nil
}

func (m *Monitor) doDropTenant(r *request, a *privsep.TenantRef) (answer, error) {
	t := m.Tenants[a.UID]
	t.Dropped = append(t.Dropped, r.waiter)
	for _, s := range t.sites {
		m.drop(s)
	}
	m.tenantEnded(t)
	return answer{later: true}, nil
}

// maxFiles bounds Launch.Files.
const maxFiles = 256

func (m *Monitor) maySetSite(a *privsep.Launch) error {
	t := m.Tenants[a.UID]
	_, known := m.Config.Zygotes[a.Zygote]
	switch {
	case t == nil:
		return serai.Errorf(serai.NotFound, "uid %d is no tenant", a.UID)
	case len(t.Dropped) > 0:
		return serai.Errorf(serai.Conflict, "uid %d is being dropped", a.UID)
	case a.Site == 0 || a.Launch < 0:
		return serai.Errorf(serai.Invalid, "site %d, launch %d: no such numbers", a.Site, a.Launch)
	case !known && a.Zygote != serai.PreloadNone:
		return serai.Errorf(serai.Invalid, "no zygote %.40q is configured", a.Zygote)
	case !isBeneath(a.Root):
		return serai.Errorf(serai.Invalid, "root %.200q is no clean path beneath a home", a.Root)
	case len(a.Files) > maxFiles:
		return serai.Errorf(serai.Invalid, "%d directories of files are too many: at most %d", len(a.Files), maxFiles)
	case len(a.Block) > privsep.MaxBlock:
		return serai.Errorf(serai.Invalid, "the block has %d bytes: at most %d", len(a.Block), privsep.MaxBlock)
	}
	for _, dir := range a.Files {
		if !isBeneath(dir) {
			return serai.Errorf(serai.Invalid, "files %.200q is no clean path beneath the site's root", dir)
		}
	}
	if s := m.Sites[a.Site]; s != nil {
		if s.Record.UID != a.UID {
			return serai.Errorf(serai.Denied, "site %d is not of uid %d", a.Site, a.UID)
		}
		if s.Dropping {
			return serai.Errorf(serai.Conflict, "site %d is being dropped", a.Site)
		}
	}
	return nil
}

func isBeneath(path string) bool {
	return len(path) < 4096 && !strings.ContainsRune(path, 0) && filepath.IsLocal(path) && filepath.Clean(path) == path
}

func (m *Monitor) doSetSite(_ *request, a *privsep.Launch) (answer, error) {
	s := m.Sites[a.Site]
	if s == nil {
		listener, err := m.bindSite(a.Site)
		if err != nil {
			return answer{}, err
		}
		t := m.Tenants[a.UID]
		s = &site{Listener: listener, tenant: t}
		m.Sites[a.Site] = s
		t.sites[a.Site] = s
	}
	s.Record, s.Hash = *a, privsep.HashLaunch(*a)
	s.Fails, s.RetryAt = 0, time.Time{}
	if m.Config.Zygotes[a.Zygote].OnDemand {
		m.zygote(a.Zygote)
	}
	m.settle(s)
	return answer{}, nil
}

func (m *Monitor) isSite(a *privsep.SiteRef) error { return m.known(a.Site) }

func (m *Monitor) known(number uint32) error {
	if s := m.Sites[number]; s == nil || s.Dropping {
		return serai.Errorf(serai.NotFound, "site %d is not there", number)
	}
	return nil
}

// mayDropSite lets a new seraid wait for what an older one has asked for.
func (m *Monitor) mayDropSite(a *privsep.SiteRef) error {
	if m.Sites[a.Site] == nil {
		return serai.Errorf(serai.NotFound, "site %d is not there", a.Site)
	}
	return nil
}

func (m *Monitor) doDropSite(r *request, a *privsep.SiteRef) (answer, error) {
	s := m.Sites[a.Site]
	s.Ended = append(s.Ended, r.waiter)
	m.drop(s)
	return answer{later: true}, nil
}

func (m *Monitor) mayLaunch(a *privsep.SiteRef) error {
	if err := m.known(a.Site); err != nil {
		return err
	}
	s := m.Sites[a.Site]
	if s.Record.Off {
		return serai.Errorf(serai.Conflict, "site %d is stopped", a.Site)
	}
	if p := s.in(starting); p != nil && (p.Waiter != nil || p.Hash != s.Hash) {
		return serai.Errorf(serai.Conflict, "site %d is being launched", a.Site)
	}
	return nil
}

func (m *Monitor) doLaunch(r *request, a *privsep.SiteRef) (answer, error) {
	s := m.Sites[a.Site]
	s.Fails, s.RetryAt, s.Reload = 0, time.Time{}, false
	if p := s.in(starting); p != nil { // by a knock, with the same record
		p.Waiter = &r.waiter
	} else {
		m.start(s, &r.waiter, nil)
	}
	return answer{later: true}, nil
}

func (m *Monitor) doStop(r *request, a *privsep.SiteRef) (answer, error) {
	s := m.Sites[a.Site]
	s.Ended = append(s.Ended, r.waiter)
	s.Fails, s.RetryAt = 0, time.Time{}
	m.kill(s, "the site was stopped")
	return answer{later: true}, nil
}

func (m *Monitor) hasLogs(a *privsep.SiteRef) error {
	if err := m.known(a.Site); err != nil {
		return err
	}
	if m.Sites[a.Site].LogR == 0 {
		return serai.Errorf(serai.Unavailable, "site %d sleeps: it has no log pipe", a.Site)
	}
	return nil
}

func (m *Monitor) doLogs(_ *request, a *privsep.SiteRef) (answer, error) {
	s := m.Sites[a.Site]
	s.LogTaken = true
	out := answer{file: s.LogR}
	if len(s.Processes) == 0 { // what a site that sleeps by now has left
		out.once = true
		s.LogR = 0
		s.LogW.close()
	}
	return out, nil
}

func (m *Monitor) doSetRoutes(r *request, _ *none) (answer, error) {
	seals, err := unix.FcntlInt(uintptr(r.files[0]), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return answer{}, serai.Errorf(serai.Invalid, "the route table is no memfd sealed against shrinking")
	}
	m.Routes.close()
	m.Routes = fd(r.files[0])
	r.files = nil
	return answer{}, nil
}

func (m *Monitor) hasRoutes(*none) error {
	if m.Routes == 0 {
		return serai.Errorf(serai.NotFound, "there is no route table yet")
	}
	return nil
}

// doRoutes opens the table anew: the proxy cannot write to it, and reads from
// an offset of its own.
func (m *Monitor) doRoutes(*request, *none) (answer, error) {
	n, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", m.Routes), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return answer{}, fmt.Errorf("open the route table: %w", err)
	}
	return answer{file: fd(n), once: true}, nil
}

func (m *Monitor) hasFiles(a *privsep.FilesRef) error {
	if err := m.known(a.Site); err != nil {
		return err
	}
	if n := len(m.Sites[a.Site].Record.Files); a.Index < 0 || a.Index >= n {
		return serai.Errorf(serai.NotFound, "site %d has %d directories of files, not number %d", a.Site, n, a.Index)
	}
	return nil
}

// doFiles opens beneath a home, step by step: no link leads to the site's
// root, and none out of it.
func (m *Monitor) doFiles(_ *request, a *privsep.FilesRef) (answer, error) {
	s := m.Sites[a.Site]
	dir := s.Record.Files[a.Index]
	home, err := isolate.OpenHome(s.tenant.Home, s.Record.UID)
	if err != nil {
		return answer{}, missing(err, s.tenant.Home)
	}
	defer home.Close()
	root, err := isolate.OpenBeneath(int(home.Fd()), s.Record.Root, false)
	if err != nil {
		return answer{}, missing(err, filepath.Join(s.tenant.Home, s.Record.Root))
	}
	defer root.Close()
	f, err := isolate.OpenBeneath(int(root.Fd()), dir, true)
	if err != nil {
		return answer{}, missing(err, filepath.Join(s.tenant.Home, s.Record.Root, dir))
	}
	file, err := take(f)
	return answer{file: file, once: true}, err
}

func missing(err error, path string) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return serai.Errorf(serai.NotFound, "there is no directory %s", path).WithHint("make it, or correct the manifest")
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return serai.Errorf(serai.NotFound, "a link of %s leads out of the site's root", path)
	}
	return err
}

func (m *Monitor) doCheckListener(_ *request, a *privsep.SiteRef) (answer, error) {
	s := m.Sites[a.Site]
	m.renewIfDead(s)
	m.settle(s)
	return answer{}, nil
}

// in returns the main process of s in a phase.
func (s *site) in(ph phase) *process {
	i := slices.IndexFunc(s.Processes, func(p *process) bool { return p.Phase == ph && p.Task == nil })
	if i < 0 {
		return nil
	}
	return s.Processes[i]
}
