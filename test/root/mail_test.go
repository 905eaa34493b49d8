package root

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// eximConf is a private Exim beneath one directory, which delivers all mail to
// one Maildir of that directory.
const eximConf = `primary_hostname = relay.test
spool_directory = %[1]s/spool
log_file_path = %[1]s/log/%%slog
pid_file_path = %[1]s/spool/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = %[2]d
tls_advertise_hosts =
keep_environment =
smtp_accept_max = 100
acl_smtp_rcpt = rcpt
acl_smtp_data = data
deliver_drop_privilege = true
begin acl
rcpt:
  deny local_parts = unknown
    message = no such user
  defer local_parts = later
    message = come back later
  accept
data:
  deny condition = ${if match{$h_subject:}{SPAM}}
    message = no spam
  accept
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = %[1]s/box
  maildir_format
  batch_max = 100
  envelope_to_add
  return_path_add
`

// cmdMTA starts a mail server on a free port of 127.0.0.1, and sets $RELAY to
// its address; or ends it, so that nobody answers there: mta, mta stop.
func cmdMTA(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	if len(args) == 1 && args[0] == "stop" {
		ts.Check(s.stopMTA())
		return
	}
	dir := filepath.Join(s.base, "mta")
	address := ts.Getenv("RELAY")
	if address == "" { // else the one of before
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		address = l.Addr().String()
		ts.Check(l.Close())
		ts.Check(os.Mkdir(dir, 0o755))
		for _, d := range []string{"spool", "log", "box"} {
			ts.Check(os.Mkdir(filepath.Join(dir, d), 0o755))
			out, err := exec.Command("chown", "Debian-exim:", filepath.Join(dir, d)).CombinedOutput()
			if err != nil {
				ts.Fatalf("%v: %s", err, out)
			}
		}
		_, port, _ := net.SplitHostPort(address)
		var n int
		fmt.Sscan(port, &n)
		ts.Check(os.WriteFile(filepath.Join(dir, "conf"), fmt.Appendf(nil, eximConf, dir, n), 0o644))
	}
	cmd := exec.Command("/usr/sbin/exim4", "-C", filepath.Join(dir, "conf"), "-bdf")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	s.mta = cmd
	wait(ts, "the mail server", func() bool {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	ts.Setenv("RELAY", address)
}

func (s *server) stopMTA() error {
	if s.mta == nil {
		return nil
	}
	err := s.mta.Process.Kill()
	_ = s.mta.Wait() // it was killed
	s.mta = nil
	return err
}

var (
	addedByMTA = regexp.MustCompile(`(?s)^Return-path: (<.*?>)\nEnvelope-to: (.*?)\nReceived: .*? [-+]\d{4}\n`)
	varying    = []struct {
		re *regexp.Regexp
		by string
	}{
		{regexp.MustCompile(`Received: by (\S+) \(Serai, from ([^)]+)\)\n\tid [0-9a-f]{16}; .*\n`), "Received: by HOST (Serai, from $2)\n"},
		{regexp.MustCompile(`(?m)^Date: \w{3}, +\d+ \w{3} \d{4} \d\d:\d\d:\d\d (UT|GMT|[-+]\d{4})$`), "Date: DATE"},
		{regexp.MustCompile(`(?mi)^Message-Id: <\S+@\S+>$`), "Message-Id: ID"},
		{regexp.MustCompile(`(?m)^(X-Mailer: \S+) .*$`), "$1"},
		{regexp.MustCompile(`_----------=_\d+`), "BOUNDARY"}, // of MIME::Lite
	}
)

// cmdMails waits until the mail server has delivered so many messages, and
// prints them in order of their text, envelope first, without what differs
// from run to run: mails N.
func cmdMails(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	var files []string
	wait(ts, args[0]+" mails", func() bool {
		files, _ = filepath.Glob(s.base + "/mta/box/new/*")
		return fmt.Sprint(len(files)) == args[0]
	})
	host, err := os.Hostname()
	ts.Check(err)
	var texts []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		ts.Check(err)
		text := string(b)
		if m := addedByMTA.FindStringSubmatch(text); m != nil {
			to := strings.Split(m[2], ",\n ")
			slices.Sort(to)
			text = "--- from " + m[1] + " to " + strings.Join(to, " ") + "\n" + text[len(m[0]):]
		}
		for _, v := range varying {
			text = v.re.ReplaceAllString(text, v.by)
		}
		text = strings.ReplaceAll(text, "@"+host, "@HOST")
		texts = append(texts, strings.ReplaceAll(text, s.prefix, "PREFIX-"))
	}
	slices.Sort(texts)
	_, err = io.WriteString(ts.Stdout(), strings.Join(texts, ""))
	ts.Check(err)
}
