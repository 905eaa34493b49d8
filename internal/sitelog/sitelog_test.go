package sitelog

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

var shop = serai.Key{Kind: serai.KindSite, Tenant: "alice", Name: "shop"}

// logs runs Logs until the test ends or stop is called.
func logs(t *testing.T) (l *Logs, stop func()) {
	t.Helper()
	dir := t.TempDir()
	l = New(&config.Config{LogDir: dir}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return l, stop
}

// pipe is a log pipe that is kept as the site's.
func pipe(t *testing.T, l *Logs, site serai.Key) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	l.Keep(site, r)
	return w
}

// follow reads lines of a site's log as they come.
func follow(t *testing.T, l *Logs, path string, lines int) *bufio.Scanner {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	r, err := l.Read(ctx, path, lines, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	return s
}

var timed = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z `)

// next is the next line without its time.
func next(t *testing.T, s *bufio.Scanner) string {
	t.Helper()
	if !s.Scan() {
		t.Fatalf("no line came: %v", s.Err())
	}
	line := s.Text()
	if !timed.MatchString(line) {
		t.Errorf("line %q has no time", line)
	}
	return line[min(len(line), len("2006-01-02T15:04:05.000Z ")):]
}

func TestPipeToLog(t *testing.T) {
	l, _ := logs(t)
	s := follow(t, l, l.Path(shop), 10) // before the directory is there
	w := pipe(t, l, shop)
	for _, tt := range []struct{ in, want string }{
		{"plain\n", "plain"},
		{"two\nlines\n", "two"},
		{"", "lines"},
		{"\n", ""},
		{"dos\r\n", "dos"},
		{"tab\there\n", "tab\there"},
		{"\x1b]0;evil\x07\n", `\x1b]0;evil\x07`},
		{"\x9b31m \xff\n", `\x9b31m \xff`},
		{"\u009b31m\n", `\xc2\x9b31m`},
		{"grüße 日本\n", "grüße 日本"},
		{strings.Repeat("x", maxLine) + "\n", strings.Repeat("x", maxLine)},
		{strings.Repeat("y", 3*maxLine) + "\n", strings.Repeat("y", maxLine) + cutMark},
		{"no newline", "no newline"}, // after a while
	} {
		if _, err := io.WriteString(w, tt.in); err != nil {
			t.Fatal(err)
		}
		if got := next(t, s); got != tt.want {
			t.Errorf("%q became %q; want %q", tt.in, got, tt.want)
		}
	}
}

// The end of a pipe, and the end of seraid, lose nothing that was read.
func TestEnds(t *testing.T) {
	l, stop := logs(t)
	s := follow(t, l, l.Path(shop), 10)
	w := pipe(t, l, shop)
	io.WriteString(w, "unfinished")
	w.Close()
	if got := next(t, s); got != "unfinished" {
		t.Errorf("got %q", got)
	}
	w = pipe(t, l, shop)
	io.WriteString(w, "line\n")
	if got := next(t, s); got != "line" {
		t.Errorf("got %q", got)
	}
	stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.files)+len(l.pipes) > 0 {
		t.Errorf("%d files and %d pipes are left", len(l.files), len(l.pipes))
	}
}

// The same pipe handed over twice is read once.
func TestSamePipeTwice(t *testing.T) {
	l, _ := logs(t)
	s := follow(t, l, l.Path(shop), 10)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	l.Keep(shop, r)
	l.Keep(shop, again)
	l.mu.Lock()
	if n := len(l.pipes); n != 1 {
		t.Errorf("%d pipes are read", n)
	}
	l.mu.Unlock()
	io.WriteString(w, "once\n")
	if got := next(t, s); got != "once" {
		t.Errorf("got %q", got)
	}
}

// A flood of one site does not keep another's line waiting for its end.
func TestFloodTakesTurns(t *testing.T) {
	l, _ := logs(t)
	flood, other := pipe(t, l, shop), serai.Key{Kind: serai.KindSite, Tenant: "bob", Name: "blog"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		text := bytes.Repeat([]byte("flood flood flood flood\n"), 1000)
		for {
			if _, err := flood.Write(text); err != nil {
				return
			}
		}
	}()
	s := follow(t, l, l.Path(other), 10)
	w := pipe(t, l, other)
	for i := range 20 {
		fmt.Fprintf(w, "line %d\n", i)
		if got, want := next(t, s), fmt.Sprint("line ", i); got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
	flood.Close()
	<-done
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alice", "shop.log")
	f := &file{path: path}
	defer f.close()
	big := append(bytes.Repeat([]byte("x"), rotateSize/2-1), '\n')
	for i := range 13 { // two a file
		if err := f.write(append([]byte(fmt.Sprintln("part", i)), big[20:]...), 2); err != nil {
			t.Fatal(err)
		}
	}
	names, _ := filepath.Glob(path + "*")
	if len(names) != rotateFiles {
		t.Errorf("files %v; want %d", names, rotateFiles)
	}
	for n, want := range []string{"part 12\n", "part 10\n", "part 8\n", "part 6\n", "part 4\n"} {
		text, err := os.ReadFile(numbered(path, n))
		if err != nil || !bytes.HasPrefix(text, []byte(want)) {
			t.Errorf("file %d begins with %.10q, %v; want %q", n, text, err, want)
		}
	}
}

// A follower sees every line once, over rotations.
func TestFollowOverRotation(t *testing.T) {
	l, _ := logs(t)
	path := l.Path(shop)
	f := &file{path: path}
	defer f.close()
	f.write([]byte("0\n1\n"), 2)
	s := follow(t, l, path, 1)
	for i := 1; i < 50; i++ {
		if i%10 == 0 {
			f.mu.Lock()
			if err := f.rotate(); err != nil {
				t.Fatal(err)
			}
			f.mu.Unlock()
		}
		if i > 1 {
			f.write(fmt.Appendln(nil, i), 1)
		}
		if !s.Scan() || s.Text() != fmt.Sprint(i) {
			t.Fatalf("line %q, %v; want %d", s.Text(), s.Err(), i)
		}
	}
}

func TestLastLines(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string // newest first
		lines int
		want  string
	}{
		{"no file", nil, 5, ""},
		{"empty", []string{""}, 5, ""},
		{"none wanted", []string{"a\nb\n"}, 0, ""},
		{"one", []string{"a\nb\n"}, 1, "b\n"},
		{"all", []string{"a\nb\n"}, 5, "a\nb\n"},
		{"exactly", []string{"a\nb\n"}, 2, "a\nb\n"},
		{"unfinished", []string{"a\nb"}, 1, "b"},
		{"empty lines", []string{"a\n\n\n"}, 2, "\n\n"},
		{"older files", []string{"e\n", "c\nd\n", "a\nb\n"}, 4, "b\nc\nd\ne\n"},
		{"a hole", []string{"e\n"}, 4, "e\n"},
		{"long lines", []string{strings.Repeat("x", 200<<10) + "\n" + strings.Repeat("y", 200<<10) + "\n"}, 1, strings.Repeat("y", 200<<10) + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, _ := logs(t)
			path := l.Path(shop)
			os.MkdirAll(filepath.Dir(path), 0o700)
			for n, text := range tt.files {
				if err := os.WriteFile(numbered(path, n), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r, err := l.Read(t.Context(), path, tt.lines, false)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if string(got) != tt.want || err != nil {
				t.Errorf("read %.80q, %v; want %.80q", got, err, tt.want)
			}
		})
	}
}

func TestFollowersAreBounded(t *testing.T) {
	l, _ := logs(t)
	var open []io.Closer
	for range maxFollowers {
		r, err := l.Read(t.Context(), l.Path(shop), 0, true)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r)
	}
	if _, err := l.Read(t.Context(), l.Path(shop), 0, true); serai.KindOf(err) != serai.Unavailable {
		t.Errorf("one more: %v", err)
	}
	for _, r := range open {
		r.Close()
	}
}

// A disk that is full loses lines, which are counted; the reader goes on.
func TestFullDisk(t *testing.T) {
	f := &file{path: "/dev/full"}
	defer f.close()
	if err := f.write([]byte("a\n"), 1); err == nil {
		t.Fatal("a full disk took a line")
	}
	for range 9 {
		if err := f.write([]byte("a\n"), 1); err != nil {
			t.Errorf("said again: %v", err)
		}
	}
	f.close()
	f.path = filepath.Join(t.TempDir(), "shop.log")
	if err := f.write([]byte("b\n"), 1); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(f.path)
	if !strings.Contains(string(text), "10 lines were lost") || !strings.HasSuffix(string(text), "\nb\n") {
		t.Errorf("the log says %q", text)
	}
}

func TestRemove(t *testing.T) {
	for _, purge := range []bool{false, true} {
		t.Run(fmt.Sprint("purge ", purge), func(t *testing.T) {
			l, _ := logs(t)
			path := l.Path(shop)
			s := follow(t, l, path, 10)
			w := pipe(t, l, shop)
			io.WriteString(w, "secret\n")
			next(t, s)
			if err := l.Remove("alice", 1900006001, purge); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Errorf("the log is still there: %v", err)
			}
			_, err := os.Stat(filepath.Dir(path) + ".1900006001/shop.log")
			if purge != os.IsNotExist(err) {
				t.Errorf("purge %v, the log put aside: %v", purge, err)
			}
			if err := l.Remove("nobody", 1, purge); err != nil {
				t.Error(err)
			}
		})
	}
}

// A line of the mail log stays one line, whoever wrote what is in it, and goes
// with the tenant.
func TestMail(t *testing.T) {
	l, _ := logs(t)
	s := follow(t, l, l.MailPath("alice"), 10)
	for range 2 {
		if err := l.Mail("alice", "sent: 250 ok\x1b[31m\r\nforged"); err != nil {
			t.Fatal(err)
		}
		if got, want := next(t, s), `sent: 250 ok\x1b[31m\x0d\x0aforged`; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := l.Remove("alice", 1900006001, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.MailPath("alice")); !os.IsNotExist(err) {
		t.Errorf("the log is still there: %v", err)
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\x1b[2J\xff\r\n\n"), 3)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		var s splitter
		var out []byte
		var count int64
		for p := in; len(p) > 0; {
			n := min(max(piece, 1), len(p))
			s.add(p[:n])
			text, lines := s.take()
			out, count, p = append(out, text...), count+lines, p[n:]
		}
		s.flush()
		text, lines := s.take()
		out, count = append(out, text...), count+lines
		if int64(bytes.Count(out, []byte{'\n'})) != count {
			t.Errorf("%d lines were counted in %q", count, out)
		}
		for _, c := range string(out) {
			if c < 0x20 && c != '\n' && c != '\t' || 0x7f <= c && c < 0xa0 {
				t.Fatalf("%q came through in %q", c, out)
			}
		}
		for line := range bytes.Lines(out) {
			if !timed.Match(line) {
				t.Errorf("line %q has no time", line)
			}
		}
	})
}

// TestTell: a line of our own stands between those of the site, is one line
// whatever is in it, and is written where no pipe is there.
func TestTell(t *testing.T) {
	l, stop := logs(t)
	l.Tell(shop, "before \x1b[31m\nSerai: forged")
	w := pipe(t, l, shop)
	s := follow(t, l, l.Path(shop), 10)
	if got, want := next(t, s), `before \x1b[31m Serai: forged`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	fmt.Fprintln(w, "of the site")
	if got := next(t, s); got != "of the site" {
		t.Errorf("%q", got)
	}
	l.Tell(shop, "after")
	if got := next(t, s); got != "after" {
		t.Errorf("%q", got)
	}
	w.Close()
	stop()
	if l.mu.Lock(); len(l.files) != 0 {
		t.Errorf("files are left open: %v", l.files)
	}
	l.mu.Unlock()
}
