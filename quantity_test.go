package serai

import "testing"

func TestParse(t *testing.T) {
	bytes := func(s string) (string, error) { b, err := ParseBytes(s); return b.String(), err }
	cpu := func(s string) (string, error) { c, err := ParseMilliCPU(s); return c.String(), err }
	duration := func(s string) (string, error) { d, err := ParseDuration(s); return d.String(), err }
	decimal := func(s string) (string, error) { d, err := ParseDecimal(s); return string(d), err }
	for _, tt := range []struct {
		name  string
		parse func(string) (string, error)
		in    string
		want  string // empty: refused
	}{
		{"bytes", bytes, "256Mi", "256Mi"},
		{"bytes", bytes, "1.5Gi", "1536Mi"},
		{"bytes", bytes, "4096", "4Ki"},
		{"bytes", bytes, "1000", "1000"},
		{"bytes", bytes, "1k", "1000"},
		{"bytes", bytes, "2T", "1953125000Ki"},
		{"bytes", bytes, "0", "0"},
		{"bytes", bytes, "512MB", ""},
		{"bytes", bytes, "-1Mi", ""},
		{"bytes", bytes, "1e3", ""},
		{"bytes", bytes, "0x10", ""},
		{"bytes", bytes, "Inf", ""},
		{"bytes", bytes, "9999999999Ti", ""},
		{"bytes", bytes, "", ""},
		{"cpu", cpu, "500m", "500m"},
		{"cpu", cpu, "1.5", "1500m"},
		{"cpu", cpu, "2", "2"},
		{"cpu", cpu, "0.0001", ""},
		{"cpu", cpu, "many", ""},
		{"cpu", cpu, "-1", ""},
		{"duration", duration, "5m", "5m"},
		{"duration", duration, "90s", "1m30s"},
		{"duration", duration, "1h", "1h"},
		{"duration", duration, "1h0m30s", "1h0m30s"},
		{"duration", duration, "10", ""},
		{"duration", duration, "-1s", ""},
		{"decimal", decimal, "4.00", "4.00"},
		{"decimal", decimal, "0.0060", "0.0060"},
		{"decimal", decimal, "4,00", ""},
		{"decimal", decimal, ".5", ""},
		{"decimal", decimal, "-1", ""},
		{"decimal", decimal, "1e3", ""},
	} {
		t.Run(tt.name+" "+tt.in, func(t *testing.T) {
			got, err := tt.parse(tt.in)
			if tt.want == "" {
				if KindOf(err) != Invalid || err == nil {
					t.Fatalf("%s(%q) = %q, %v; want it refused as invalid", tt.name, tt.in, got, err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("%s(%q) = %q, %v; want %q", tt.name, tt.in, got, err, tt.want)
			}
			if again, err := tt.parse(got); err != nil || again != got {
				t.Fatalf("%s(%q) = %q, %v; what is printed must read back", tt.name, got, again, err)
			}
		})
	}
}
