package manifest

import (
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/schedule"
)

// A valueType is the type of a field in the table: a scalar, a list, or a
// mapping with keys of a person's own choice.
type valueType struct {
	name string // in the reference: size, list of hosts
	want string // what to write, after "write "
	// scalar reads a text and returns what goes into the struct's JSON.
	// Errors are Invalid and say what would be right.
	scalar       func(string) (any, error)
	list         *valueType // of the elements
	keys, values *valueType
	min, max     int64 // number of elements; a max of 0 is any
	again        bool  // elements may be there twice
}

func invalid(format string, args ...any) error {
	return serai.Errorf(serai.Invalid, format, args...)
}

func listOf(t *valueType, plural string, min, max int64, want string) *valueType {
	return &valueType{name: "list of " + plural, want: want, list: t, min: min, max: max}
}

func mapOf(keys, values *valueType, min int64, want string) *valueType {
	return &valueType{name: "mapping of " + keys.name + " to " + values.name, want: want, keys: keys, values: values, min: min}
}

// text is a scalar type whose values are strings.
func text(name, want string, read func(string) (string, error)) *valueType {
	return &valueType{name: name, want: want, scalar: func(s string) (any, error) { return read(s) }}
}

// matching is a text of a form.
func matching(name, want, pattern string, max int) *valueType {
	re := regexp.MustCompile(pattern)
	return text(name, want, func(s string) (string, error) {
		if len(s) > max || !re.MatchString(s) {
			return "", invalid("%q is not %s: write %s", clip(s), article(name), want)
		}
		return s, nil
	})
}

func article(name string) string {
	if strings.IndexByte("aeiou", name[0]) >= 0 {
		return "an " + name
	}
	return "a " + name
}

const namePattern = `^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`

var (
	nameType = matching("name", "a name such as alice, of 1 to 32 of a-z, 0-9 and -, a letter first", namePattern, 32)
	hostType = text("host", "a host name such as shop.example.com", ParseHost)
	boolType = &valueType{name: "boolean", want: "true or false", scalar: readBool}
	cpuType  = &valueType{name: "CPU", want: "thousandths of a CPU such as 500m, or CPUs such as 2", scalar: readCPU}

	amountType = &valueType{name: "amount", want: `digits with a point, such as "4.00"`, scalar: func(s string) (any, error) {
		return serai.ParseDecimal(s)
	}}
	currencyType = matching("currency", "three capital letters such as EUR", `^[A-Z]{3}$`, 3)
	contactType  = text("line of text", "one line such as alice@example.net", func(s string) (string, error) {
		if s == "" || len(s) > 254 || strings.ContainsFunc(s, unicode.IsControl) {
			return "", invalid("%q is not one line of 1 to 254 characters: write one such as alice@example.net", clip(s))
		}
		return s, nil
	})

	homeDir    = relative("directory", "a directory such as shop", "the tenant's home", false)
	dirType    = relative("directory", "a directory such as public", "the site's root", true)
	fileType   = relative("file", "a file such as app.psgi", "the site's root", false)
	prefixType = text("URL prefix", "a URL prefix such as /static", readPrefix)
	envName    = matching("variable name", "letters, digits and _, no digit first, such as APP_MODE", `^[A-Za-z_][A-Za-z0-9_]*$`, 255)
	envValue   = text("text", "a text", func(s string) (string, error) {
		if strings.ContainsRune(s, 0) {
			return "", invalid("%q has a NUL byte: the environment cannot hold one, leave it out", clip(s))
		}
		return s, nil
	})
	scheduleType = text("schedule", `a schedule such as "15 3 * * *"`, func(s string) (string, error) {
		_, err := schedule.Parse(s, "UTC")
		return s, err
	})
	zoneType = matching("time zone", "a time zone such as Europe/Berlin", `^[A-Za-z0-9_+/-]+$`, 64)
	runType  = &valueType{name: "command", want: "[perl, bin/nightly.pl]", list: argType, min: 1, max: 256, again: true}
	argType  = text("argument", "a text", func(s string) (string, error) {
		if strings.ContainsRune(s, 0) {
			return "", invalid("%q has a NUL byte: an argument cannot hold one, leave it out", clip(s))
		}
		return s, nil
	})
	settingName  = matching("setting", "a name such as title, of 1 to 32 of a-z, 0-9 and _, a letter first", `^[a-z][a-z0-9_]{0,31}$`, 32)
	settingValue = text("line of text", "one line of at most 1,000 bytes", func(s string) (string, error) {
		if len(s) > 1000 || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return "", invalid("%q is not one line of at most 1,000 bytes: write one", clip(s))
		}
		return s, nil
	})
	mountType = func() *valueType {
		t := mapOf(prefixType, nameType, 0, "{/guestbook: guestbook}")
		t.scalar = prefixType.scalar // of the keys, as for any group
		return t
	}()
	moduleType = matching("module", "a Perl module such as Plack::Request", `^[A-Za-z_][A-Za-z0-9_]*(::[A-Za-z0-9_]+)*$`, 200)

	absType   = text("path", "an absolute path such as /var/lib/serai", readAbsolute)
	rangeType = &valueType{name: "range", want: "two numbers such as 1900000000-1900099999", scalar: readRange}
	listenOn  = text("address", "an address with a port, such as 127.0.0.1:8080 or [::]:80", readListen)
	relayType = text("address", "a host with a port, such as localhost:25", readHostPort)
	emailType = matching("mail address", "one such as operator@example.net", `^[^@\s]+@[^@\s]+$`, 254)
	lineType  = matching("text", "one line without spaces", `^[!-~]+$`, 1024)
)

func readBool(s string) (any, error) {
	if s != "true" && s != "false" {
		return nil, invalid("%q is neither true nor false: write one of them", clip(s))
	}
	return s == "true", nil
}

// number is a whole number within bounds.
func number(min, max int64) *valueType {
	want := "a whole number of " + strconv.FormatInt(min, 10) + " to " + strconv.FormatInt(max, 10)
	return &valueType{name: "number", want: want, scalar: func(s string) (any, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil && strings.Trim(s, "-0123456789") == "" && strings.Trim(s, "-") != "" {
			return nil, invalid("%s is out of bounds: write %s", clip(s), want)
		}
		if err != nil || strconv.FormatInt(n, 10) != s {
			return nil, invalid("%q is not a number: write %s", clip(s), want)
		}
		if n < min || n > max {
			return nil, invalid("%d is out of bounds: write %s", n, want)
		}
		return n, nil
	}}
}

// size is a number of bytes within bounds.
func size(min, max serai.Bytes) *valueType {
	want := "a size of " + min.String() + " to " + max.String()
	return &valueType{name: "size", want: want, scalar: func(s string) (any, error) {
		b, err := serai.ParseBytes(s)
		if err != nil {
			return nil, invalid("%q is not a size: write a number with Ki, Mi, Gi or Ti, such as 256Mi", clip(s))
		}
		if b < min || b > max {
			return nil, invalid("%q is out of bounds: write %s", clip(s), want)
		}
		return b, nil
	}}
}

// duration is a time within bounds. Where whole is set it goes into JSON as
// nanoseconds, for fields that are a time.Duration.
func duration(min, max time.Duration, whole bool) *valueType {
	want := "a duration of " + serai.Duration(min).String() + " to " + serai.Duration(max).String()
	return &valueType{name: "duration", want: want, scalar: func(s string) (any, error) {
		d, err := serai.ParseDuration(s)
		if err != nil {
			return nil, invalid("%q is not a duration: write a number with ms, s, m or h, such as 10s", clip(s))
		}
		if t := time.Duration(d); t < min || t > max {
			return nil, invalid("%q is out of bounds: write %s", clip(s), want)
		}
		if whole {
			return time.Duration(d), nil
		}
		return d, nil
	}}
}

// orNone is a value that may be 0.
func orNone(t *valueType, none any) *valueType {
	t.want = "0 for none, or " + t.want
	some := t.scalar
	t.scalar = func(s string) (any, error) {
		if s == "0" {
			return none, nil
		}
		return some(s)
	}
	return t
}

func sizeOrNone(min, max serai.Bytes) *valueType { return orNone(size(min, max), serai.Bytes(0)) }

func durationOrNone(min, max time.Duration) *valueType {
	return orNone(duration(min, max, false), serai.Duration(0))
}

func readCPU(s string) (any, error) {
	c, err := serai.ParseMilliCPU(s)
	if err != nil {
		return nil, invalid("%q is not an amount of CPU: write thousandths such as 500m, or CPUs such as 2 or 1.5", clip(s))
	}
	if c < 10 || c > 1024e3 {
		return nil, invalid("%q is out of bounds: write 10m to 1024", clip(s))
	}
	return c, nil
}

// oneOf is a word of a list. The words of later are known but not built.
func oneOf(name string, built, later []string) *valueType {
	all := append(append([]string{}, built...), later...)
	want := strings.Join(built, " or ")
	return text(name, want, func(s string) (string, error) {
		for i, w := range all {
			switch {
			case s == w && i < len(built):
				return s, nil
			case s == w:
				return "", invalid("the %s %s is not built yet: write %s", name, s, want)
			}
		}
		if m := meant(s, all); m != "" {
			return "", invalid("%q is no %s, did you mean %s?", clip(s), name, m)
		}
		return "", invalid("%q is no %s: write %s", clip(s), name, want)
	})
}

// relative is a path that stays beneath from; dot says whether it may be from
// itself. Whether links lead out of it is seen by those who open it.
func relative(name, want, from string, dot bool) *valueType {
	return text(name, want, func(s string) (string, error) {
		clean := path.Clean(s)
		switch {
		case s == "":
			return "", invalid("is empty: write %s", want)
		case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == 0x2028 || r == 0x2029 }):
			return "", invalid("%q has a control character: write %s", clip(s), want)
		case s[0] == '/':
			return "", invalid("%q is absolute: write it without the / before it, as it is seen from %s", clip(s), from)
		case s[0] == '~':
			return "", invalid("%q starts with ~: write it as it is seen from %s", clip(s), from)
		case clean == ".." || strings.HasPrefix(clean, "../"):
			return "", invalid("%q leads out of %s: write %s", clip(s), from, want)
		case clean == "." && !dot:
			return "", invalid("%q is %s itself: write %s", clip(s), from, want)
		case len(s) > 1024:
			return "", invalid("%q is longer than 1,024 bytes: write a shorter path", clip(s))
		case clean != s:
			return "", invalid("%q is a roundabout path: write %q", clip(s), clip(clean))
		}
		return s, nil
	})
}

func readPrefix(s string) (string, error) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return "", invalid("%q is no URL prefix: write one that starts with /, such as /static", clip(s))
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(" ?#%\\", r) }):
		return "", invalid("%q has a character that no prefix may have: write it decoded, without spaces, ?, #, %% and \\", clip(s))
	case len(s) > 255:
		return "", invalid("%q is longer than 255 bytes: write a shorter prefix", clip(s))
	case path.Clean(s) != s:
		return "", invalid("%q is a roundabout prefix: write %q", clip(s), clip(path.Clean(s)))
	}
	return s, nil
}

func readAbsolute(s string) (string, error) {
	switch {
	case !strings.HasPrefix(s, "/") || strings.ContainsFunc(s, unicode.IsControl):
		return "", invalid("%q is not an absolute path: write one such as /var/lib/serai", clip(s))
	case path.Clean(s) != s:
		return "", invalid("%q is a roundabout path: write %q", clip(s), clip(path.Clean(s)))
	case s == "/":
		return "", invalid("%q is the whole machine: write a directory such as /var/lib/serai", s)
	case len(s) > 1024:
		return "", invalid("%q is longer than 1,024 bytes: write a shorter path", clip(s))
	}
	return s, nil
}

// readRange reads FIRST-LAST; an empty text is the empty range.
func readRange(s string) (any, error) {
	if s == "" {
		return config.Range{}, nil
	}
	a, b, ok := strings.Cut(s, "-")
	first, err1 := strconv.ParseUint(a, 10, 32)
	last, err2 := strconv.ParseUint(b, 10, 32)
	switch {
	case !ok || err1 != nil || err2 != nil:
		return nil, invalid("%q is not a range: write two numbers such as 1900000000-1900099999", clip(s))
	case first > last:
		return nil, invalid("%q ends before it starts: write the smaller number first", clip(s))
	case first == 0:
		return nil, invalid("%q starts with 0: write a range that starts later", clip(s))
	}
	return config.Range{First: uint32(first), Last: uint32(last)}, nil
}

func readListen(s string) (string, error) {
	host, port, ok := hostPort(s)
	_, err := netip.ParseAddr(host)
	if !ok || host != "" && err != nil {
		return "", invalid("%q is no address to listen on: write one such as 127.0.0.1:8080 or [::]:80", clip(s))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "", invalid("%q has no port that can be used: write a number of 1 to 65535 after the last colon", clip(s))
	}
	return s, nil
}

func readHostPort(s string) (string, error) {
	host, port, ok := hostPort(s)
	if ok {
		_, err := ParseHost(host)
		ok = err == nil && !strings.HasPrefix(host, "*")
	}
	if n, err := strconv.ParseUint(port, 10, 16); !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return "", invalid("%q is no host with a port: write one such as localhost:25", clip(s))
	}
	return s, nil
}

// hostPort cuts host:port or [address]:port apart.
func hostPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	host, port = s[:i], s[i+1:]
	if inner, six := strings.CutPrefix(host, "["); six {
		host, ok = strings.CutSuffix(inner, "]")
		return host, port, ok && strings.Contains(host, ":")
	}
	return host, port, !strings.ContainsAny(host, ":]")
}
