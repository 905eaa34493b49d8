package manifest

import (
	"net/netip"
	"strings"

	"serai.dev/serai"
)

// ParseHost reads a host name as a site or a tenant's grant lists it, and
// returns it as it is compared everywhere: in lower case, without a dot at its
// end. It is an exact name such as shop.example.com, a wildcard such as
// *.example.com, or an address such as 127.0.0.1 or [::1]. Names that are not
// ASCII are written in their xn-- form. Errors are Invalid.
func ParseHost(s string) (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", serai.Errorf(serai.Invalid, "%q "+format, append([]any{clip(s)}, args...)...)
	}
	host := strings.TrimSuffix(strings.ToLower(s), ".")
	if addr, ok := address(host); ok {
		if addr.Zone() != "" || addr.Is4In6() {
			return bad("is no plain address: write one such as 127.0.0.1 or [::1]")
		}
		if addr.Is6() {
			return "[" + addr.String() + "]", nil
		}
		return addr.String(), nil
	}
	name, wild := strings.CutPrefix(host, "*.")
	switch {
	case host == "":
		return bad("is empty: write a host name such as shop.example.com")
	case strings.Contains(host, "://") || strings.Contains(host, "/"):
		return bad("is an address of a page: write the host name alone, such as shop.example.com")
	case strings.Contains(host, ":"):
		return bad("has a port: write the host name alone, such as shop.example.com")
	case strings.Contains(name, "*"):
		return bad("is no wildcard that can be used: a * stands for the first part alone, such as *.example.com")
	case wild && !strings.Contains(name, "."):
		return bad("is too wide: write a wildcard below a name of two parts, such as *.example.com")
	case len(host) > 253:
		return bad("is longer than 253 characters: that is more than a host name can have")
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if c := strings.IndexFunc(l, func(r rune) bool { return r > 0x7e }); c >= 0 {
			return bad("is not in ASCII: write the name in its xn-- form")
		}
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return bad("is no host name: write parts of 1 to 63 letters, digits and -, such as shop.example.com")
		}
	}
	// Browsers take 1.2.3 and 0x7f.1 for addresses.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return bad("is neither a name nor an address: write a name such as shop.example.com, or four numbers")
	}
	return host, nil
}

// address reads an address as a host: IPv6 with or without brackets.
func address(host string) (netip.Addr, bool) {
	inner, six := strings.CutPrefix(host, "[")
	if six {
		if inner, six = strings.CutSuffix(inner, "]"); !six {
			return netip.Addr{}, false
		}
	}
	addr, err := netip.ParseAddr(inner)
	return addr, err == nil && (!six || addr.Is6())
}

// IsAddress reports whether a host, as ParseHost returned it, is an address.
func IsAddress(host string) bool {
	_, ok := address(host)
	return ok
}

// grantsOf lists the grants that let a tenant's site claim a host, as ParseHost
// returned it, the closest first. An exact name covers itself alone. A wildcard
// covers every name beneath, of any depth, and wildcards beneath: *.example.com
// covers a.example.com, b.a.example.com and *.a.example.com, but not
// example.com.
func grantsOf(host string) []string {
	list := []string{host}
	if IsAddress(host) {
		return list
	}
	for name := strings.TrimPrefix(host, "*."); ; {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return list
		}
		list = append(list, "*."+parent)
		name = parent
	}
}
