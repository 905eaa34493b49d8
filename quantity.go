package serai

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes is a size in bytes, 0 to 2^63-1. In manifests and JSON it is a string
// with a unit, as Kubernetes writes it: Ki Mi Gi Ti are powers of 1024, k M G T
// powers of 1000, none is bytes.
type Bytes int64

var byteUnits = []struct {
	name string
	size int64
}{
	{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}, {"", 1},
}

// ParseBytes reads a size such as 256Mi, 1.5Gi or 4096.
func ParseBytes(s string) (Bytes, error) {
	for _, u := range byteUnits {
		num, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(num, 64)
		if err != nil || f < 0 || math.IsNaN(f) || f*float64(u.size) >= math.MaxInt64 || strings.ContainsAny(num, "eExXpP_nN+") {
			break
		}
		return Bytes(math.Round(f * float64(u.size))), nil
	}
	return 0, Errorf(Invalid, "%q is not a size: write a number with Ki, Mi, Gi or Ti, such as 256Mi", s)
}

// String prints the size exactly, with the largest binary unit that divides it.
func (b Bytes) String() string {
	for _, u := range byteUnits[:4] {
		if b != 0 && int64(b)%u.size == 0 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText is ParseBytes.
func (b *Bytes) UnmarshalText(t []byte) (err error) {
	*b, err = ParseBytes(string(t))
	return err
}

// MilliCPU is CPU time per time, in thousandths of one CPU: 500 is half a CPU.
// It is written 500m, 2 or 1.5.
type MilliCPU int64

// ParseMilliCPU reads 500m, 2 or 1.5.
func ParseMilliCPU(s string) (MilliCPU, error) {
	num, milli := strings.CutSuffix(s, "m")
	f, err := strconv.ParseFloat(num, 64)
	if !milli {
		f *= 1000
	}
	if err != nil || f < 0 || f > 1e9 || f != math.Trunc(f) || strings.ContainsAny(num, "eExXpP_nN+") {
		return 0, Errorf(Invalid, "%q is not an amount of CPU: write thousandths such as 500m, or CPUs such as 2 or 1.5", s)
	}
	return MilliCPU(f), nil
}

// String prints whole CPUs without unit and all else in thousandths.
func (c MilliCPU) String() string {
	if c%1000 == 0 {
		return strconv.FormatInt(int64(c/1000), 10)
	}
	return strconv.FormatInt(int64(c), 10) + "m"
}

// MarshalText is String.
func (c MilliCPU) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseMilliCPU.
func (c *MilliCPU) UnmarshalText(t []byte) (err error) {
	*c, err = ParseMilliCPU(string(t))
	return err
}

// Duration is a time.Duration written as 10s, 5m or 1h30m.
type Duration time.Duration

// ParseDuration reads a duration that is not negative.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, Errorf(Invalid, "%q is not a duration: write a number with ms, s, m or h, such as 10s", s)
	}
	return Duration(d), nil
}

// String prints 5m, not 5m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDuration.
func (d *Duration) UnmarshalText(t []byte) (err error) {
	*d, err = ParseDuration(string(t))
	return err
}

// Decimal is an amount of money or a price as it was written, such as "4.00".
// It is not a float and is not computed with here.
type Decimal string

// ParseDecimal reads up to 12 digits before and 9 after the point.
func ParseDecimal(s string) (Decimal, error) {
	whole, frac, point := strings.Cut(s, ".")
	digits := func(t string) bool { return t != "" && strings.Trim(t, "0123456789") == "" }
	if !digits(whole) || len(whole) > 12 || point && !digits(frac) || len(frac) > 9 {
		return "", Errorf(Invalid, "%q is not an amount: write digits with a point, such as %q", s, "4.00")
	}
	return Decimal(s), nil
}

// UnmarshalText is ParseDecimal.
func (d *Decimal) UnmarshalText(t []byte) (err error) {
	*d, err = ParseDecimal(string(t))
	return err
}

// GoString helps the messages of tests.
func (d Duration) GoString() string { return fmt.Sprintf("serai.Duration(%s)", d) }
