// Package perl holds the Perl side of Serai: the zygote, the worker and the
// sendmail that tenants see. It is plain Perl of Debian's package perl; the
// files are written below the run directory at start.
package perl

import "embed"

// Files are the programs and modules as they are to be written to one
// directory, here called DIR: `perl -I DIR DIR/zygote.pl` starts a zygote (see
// docs/reference/zygote-protocol.md). In sendmail, __SOCKET__ is to be
// replaced by the path of the API's socket.
//
//go:embed zygote.pl main.pl sendmail Serai/*.pm
var Files embed.FS
