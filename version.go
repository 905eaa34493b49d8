package serai

import "runtime/debug"

// version is set by the linker in a release:
// -ldflags "-X serai.dev/serai.version=1.2.3".
var version string

// Version is the release this program was built as, or "devel" with the
// revision where the build knows it.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel " + s.Value[:12]
		}
	}
	return "devel"
}
