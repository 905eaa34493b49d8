package account

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// lastID is the greatest id we use: many programs keep ids in an int.
const lastID = 1<<31 - 1

// CheckRanges refuses ranges of ids that are not ours alone: in one sentence,
// with file and line. An account or group within accounts.range must be one
// that Create made; a subordinate range of somebody must meet neither
// accounts.range nor accounts.adopt.
func CheckRanges(a config.Accounts) error { return checkRanges(a, "/etc") }

func checkRanges(a config.Accounts, etc string) error {
	if err := checkShape(a); err != nil {
		return err
	}
	for _, name := range []string{"subuid", "subgid"} {
		lines, err := readSub(filepath.Join(etc, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, l := range lines {
			if field, r := meets(a, l.ids); field != "" {
				return serai.Errorf(serai.Conflict, "%s %v meets the ids %v of %s (%s:%d)",
					field, r, l.ids, l.name, filepath.Join(etc, name), l.line).
					WithHint("choose another range for %s", field)
			}
		}
	}
	path := filepath.Join(etc, "passwd")
	users, err := readPasswd(path)
	if err != nil {
		return err
	}
	ours := map[string]uint32{}
	for _, u := range users {
		switch {
		case !a.Range.Has(u.UID):
		case u.Ours(a) && a.Tenant(u.UID):
			ours[u.Name] = u.UID
		default:
			return serai.Errorf(serai.Conflict, "accounts.range %v has the uid of the account %s, which serai did not make for %s (%s:%d)",
				a.Range, u.Name, a.Home, path, u.line).WithHint("choose another range for accounts.range")
		}
	}
	path = filepath.Join(etc, "group")
	groups, err := readGroup(path)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if a.Range.Has(g.gid) && ours[g.name] != g.gid {
			return serai.Errorf(serai.Conflict, "accounts.range %v has the gid of the group %s (%s:%d)", a.Range, g.name, path, g.line).
				WithHint("choose another range for accounts.range, or remove the group")
		}
	}
	return nil
}

// checkShape looks at the numbers alone.
func checkShape(a config.Accounts) error {
	for _, r := range []struct {
		field string
		ids   config.Range
		least uint32
	}{{"accounts.range", a.Range, 2 * config.Reserved}, {"accounts.adopt", a.Adopt, 1}} {
		switch {
		case r.ids.Empty() && r.field == "accounts.adopt":
		case r.ids.First > r.ids.Last || r.ids.Last-r.ids.First+1 < r.least:
			return serai.Errorf(serai.Invalid, "%s %v has fewer than %d ids", r.field, r.ids, r.least)
		case r.ids.First < 1000:
			return serai.Errorf(serai.Invalid, "%s %v has ids of the system's own accounts, those below 1000", r.field, r.ids)
		case r.ids.Last > lastID:
			return serai.Errorf(serai.Invalid, "%s %v has ids above %d", r.field, r.ids, lastID)
		case r.ids.Has(65534) || r.ids.Has(65535):
			return serai.Errorf(serai.Invalid, "%s %v has the ids 65534 and 65535, which mean nobody", r.field, r.ids)
		}
	}
	if a.Range.Meets(a.Adopt) {
		return serai.Errorf(serai.Invalid, "accounts.range %v and accounts.adopt %v share ids", a.Range, a.Adopt)
	}
	return nil
}

// meets is the field of the configuration that shares ids with r.
func meets(a config.Accounts, r config.Range) (string, config.Range) {
	switch {
	case r.Meets(a.Range):
		return "accounts.range", a.Range
	case r.Meets(a.Adopt):
		return "accounts.adopt", a.Adopt
	}
	return "", config.Range{}
}

// A subLine is a line of /etc/subuid or /etc/subgid.
type subLine struct {
	name string
	ids  config.Range
	line int
}

func readSub(path string) ([]subLine, error) {
	var list []subLine
	err := readColons(path, func(n int, f []string) {
		if len(f) != 3 {
			return
		}
		first, err := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err == nil && err2 == nil && count > 0 {
			last := min(first+count-1, 1<<32-1)
			list = append(list, subLine{f[0], config.Range{First: uint32(first), Last: uint32(last)}, n})
		}
	})
	return list, err
}

// CheckAdopt refuses an account that must not become a tenant's. Its ids must
// be in accounts.adopt, and no other account may have its uid.
func CheckAdopt(a config.Accounts, i Info) error {
	users, err := readPasswd(passwd)
	if err != nil {
		return err
	}
	if err := checkAdopt(a, i, users); err != nil {
		return err
	}
	st, err := os.Lstat(i.Home)
	if errors.Is(err, fs.ErrNotExist) {
		return serai.Errorf(serai.Invalid, "the home %s of %s does not exist", i.Home, i.Name)
	}
	if err != nil {
		return fmt.Errorf("look at home: %w", err)
	}
	if !st.IsDir() || owner(st) != i.UID {
		return serai.Errorf(serai.Invalid, "the home %s of %s is not a directory of its own: it belongs to uid %d", i.Home, i.Name, owner(st))
	}
	return checkRanges(a, "/etc")
}

func checkAdopt(a config.Accounts, i Info, users []passwdLine) error {
	switch {
	case a.Adopt.Empty():
		return serai.Errorf(serai.Denied, "no account may be adopted: accounts.adopt is empty")
	case !a.Adopt.Has(i.UID):
		return serai.Errorf(serai.Denied, "uid %d of %s is not within accounts.adopt %v", i.UID, i.Name, a.Adopt)
	case !a.Adopt.Has(i.GID):
		return serai.Errorf(serai.Denied, "the group %d of %s is not within accounts.adopt %v", i.GID, i.Name, a.Adopt).
			WithHint("give the account a group of its own there")
	case !filepath.IsAbs(i.Home) || filepath.Clean(i.Home) == "/":
		return serai.Errorf(serai.Invalid, "%s has no home of its own, but %q", i.Name, i.Home)
	}
	for _, u := range users {
		if u.UID == i.UID && u.Name != i.Name {
			return serai.Errorf(serai.Conflict, "the accounts %s and %s have the same uid %d", i.Name, u.Name, i.UID)
		}
	}
	return nil
}
