package account

import (
	"errors"
	"slices"
	"strings"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// EnsureSystemUsers makes the accounts and the group of our own processes
// where they are missing: without shell, password and home. Made says which,
// for RemoveSystemUsers; what was made before an error is in it too.
func EnsureSystemUsers(u config.Users) (made []string, err error) {
	for _, name := range []string{u.Daemon, u.Proxy} {
		i, err := LookupName(name)
		switch {
		case err == nil && i.UID == 0:
			return made, serai.Errorf(serai.Invalid, "the account %s is root: our processes must not be", name)
		case err == nil:
			continue
		case serai.KindOf(err) != serai.NotFound:
			return made, err
		}
		has, err := hasGroup(name)
		if err != nil {
			return made, err
		}
		args := []string{"--system", "--no-log-init", "--no-create-home", "--home-dir", "/nonexistent", "--shell", nologin}
		if has {
			args = append(args, "--gid", name)
		} else {
			args = append(args, "--user-group")
		}
		if err := tool("useradd", append(args, name)...); err != nil {
			if _, again := LookupName(name); again == nil {
				continue // another server made it meanwhile
			}
			return made, err
		}
		made = append(made, "user "+name)
		if !has {
			made = append(made, "group "+name)
		}
	}
	has, err := hasGroup(u.Admin)
	if err != nil || has {
		return made, err
	}
	if err := tool("groupadd", "--system", u.Admin); err != nil {
		return made, err
	}
	return append(made, "group "+u.Admin), nil
}

// RemoveSystemUsers removes what EnsureSystemUsers made, the last first. What
// is not there any more is no error.
func RemoveSystemUsers(made []string) error {
	var errs []error
	for _, m := range slices.Backward(made) {
		kind, name, _ := strings.Cut(m, " ")
		switch kind {
		case "user":
			if _, err := LookupName(name); err == nil {
				errs = append(errs, tool("userdel", name))
			}
		case "group":
			if slices.Contains(made, "user "+name) {
				continue // with or after its user
			}
			errs = append(errs, dropGroup(name))
		}
	}
	for _, m := range made {
		if name, ok := strings.CutPrefix(m, "group "); ok {
			errs = append(errs, dropGroup(name))
		}
	}
	return errors.Join(errs...)
}

func dropGroup(name string) error {
	has, err := hasGroup(name)
	if err != nil || !has {
		return err
	}
	return tool("groupdel", name)
}

func hasGroup(name string) (bool, error) {
	groups, err := readGroup(group)
	return slices.ContainsFunc(groups, func(g groupLine) bool { return g.name == name }), err
}
