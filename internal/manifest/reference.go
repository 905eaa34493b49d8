package manifest

import (
	"fmt"
	"strings"

	"serai.dev/serai"
)

// Reference is docs/reference/manifests.md, made from the tables.
func Reference() []byte {
	var b strings.Builder
	b.WriteString(referenceHead)
	for _, kind := range kinds {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", kind, referenceKinds[kind])
		table(&b, tables[kind], kind)
	}
	b.WriteString(referenceHosts)
	table(&b, configFields, "")
	fmt.Fprintf(&b, "\nThe zygote set `%s` loads, of these, what the machine has:\n%s.\n",
		StandardZygote, strings.Join(strings.Fields(StandardModules), ", "))
	b.WriteString("\nThese sets are there too, with onDemand. Each loads what the set above does, and:\n\n| set | module |\n|---|---|\n")
	for _, f := range frameworks {
		fmt.Fprintf(&b, "| `%s` | %s |\n", f.set, f.module)
	}
	return []byte(b.String())
}

// table writes the rows that hold values, or that are a group of which nothing
// is built.
func table(b *strings.Builder, fields []Field, kind string) {
	cell := strings.NewReplacer("|", `\|`, "*", `\*`)
	who := ""
	if kind != "" {
		b.WriteString("| field | type | default | who | enforced | meaning |\n|---|---|---|---|---|---|\n")
	} else {
		b.WriteString("| setting | type | default | used | meaning |\n|---|---|---|---|---|\n")
	}
	for _, f := range fields {
		if f.typ == nil && f.State != Later {
			continue
		}
		def := ""
		switch {
		case f.Required:
			def = "required"
		case f.Default != "":
			def = "`" + f.Default + "`"
		}
		if kind != "" {
			who = "operator | "
			if kind == serai.KindSite && !f.Operator {
				who = "tenant | "
			}
		}
		typ := f.Type()
		if f.typ == nil {
			typ = ""
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s%s | %s |\n", f.Path, typ, def, who, f.State, cell.Replace(f.Meaning))
	}
}

var referenceKinds = map[string]string{
	serai.KindPlan:   "A set of limits, an isolation tier and prices. The operator's.",
	serai.KindTenant: "A customer: one account, one plan. The operator's.",
	serai.KindSite: `One or more host names served by one engine from one directory of a tenant.
Exactly one of ` + "`spec.perl.app` and `spec.perl.scripts`" + ` is written. Paths
are relative: ` + "`root`" + ` to the tenant's home, all others to ` + "`root`" + `; they may not lead
out of it. URL prefixes start with ` + "`/`" + ` and do not end with one. All that a site's
process is told (paths, environment) may be 64 KiB long.`,
}

const referenceHead = `# Manifests and the server's configuration

This page is made from the tables in internal/manifest; do not edit it.

Manifests are YAML, one or more documents a file, each a Plan, a Tenant or a
Site. They are read strictly: an unknown field, a wrong unit, a missing
reference is an error with file, line and column, the path of the field and
what would be right. All errors of all files come at once, and nothing is
applied while there is one. There are no tags and no merging with ` + "`<<`" + `; anchors
work within a document.

- **Sizes** are written ` + "`256Mi`, `1.5Gi`" + ` (Ki Mi Gi Ti: powers of 1024; k M G T: powers of 1000).
- **CPU** is written ` + "`500m`" + ` (thousandths), ` + "`2` or `1.5`" + `.
- **Durations** are written ` + "`10s`, `5m`, `1h30m`" + `.
- **Amounts** are written ` + "`\"4.00\"`" + ` and kept as they are.
- **Names** are 1 to 32 of a-z, 0-9 and -, start with a letter and do not end with -.

In the column *enforced*, **no** means that the field is accepted and kept but
that nothing acts on it yet; such fields that are set are listed in the
resource's status. Fields whose work is not built are refused.
`

const referenceHosts = `
## Hosts

- A host is an exact name (` + "`shop.example.com`" + `), a wildcard (` + "`*.example.com`" + `, every
  name beneath, of any depth) or an address (` + "`127.0.0.1`, `[::1]`" + `), without a port.
  Case does not matter, nor does a dot at the end. Names that are not ASCII are
  written in their xn-- form. A wildcard stands below at least two parts.
- A tenant's own sites may claim what ` + "`spec.hosts`" + ` of the Tenant grants: an exact name
  grants itself; ` + "`*.example.com`" + ` grants every name beneath and wildcards beneath
  (` + "`a.example.com`, `b.a.example.com`, `*.a.example.com`" + `), but not ` + "`example.com`" + `.
- A site that the operator writes needs no grant, and only such a site may have
  an address. What the operator wrote into a tenant's site the tenant may keep.
- The panel's host is nobody's. A host belongs to one site: the later one is
  refused, or gets the condition HostTaken.

## Configuration of the server

` + "`/etc/serai/serai.yaml`" + `, one YAML document, all of it optional and read as strictly.
Flags of ` + "`serai serve`" + ` with the same names win over it; lists are written there with
commas between. *used* says whether anything acts on the setting yet.

`
