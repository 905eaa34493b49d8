package dev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is a site's main process with the code as it was when it started.
type process struct {
	cmd    *exec.Cmd
	code   string // directory of the site's files
	status *net.UnixConn
	began  time.Time

	// Good when settled is closed: it serves, or it failed and has ended.
	settled chan struct{}
	broken  string // why the code did not load: that is what it serves
	failed  error

	ended chan struct{}

	mu    sync.Mutex
	files map[string]stamp
}

// A stamp tells one state of a file from another. The zero stamp is that of no
// file.
type stamp struct {
	device, inode uint64
	size          int64
	changed       unix.Timespec
}

func stampOf(path string) (s stamp) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		s = stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim}
	}
	return s
}

// start starts a process that loads the code, as docs/reference/zygote-protocol.md
// has it of main.pl.
func (s *site) start() (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	its := os.NewFile(uintptr(fds[1]), "status")
	defer its.Close()
	ours := os.NewFile(uintptr(fds[0]), "status")
	status, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("use a socket: %w", err)
	}
	order, err := s.order()
	if err != nil {
		status.Close()
		return nil, err
	}
	defer order.Close()
	p := &process{code: s.code, status: status.(*net.UnixConn), began: time.Now(),
		settled: make(chan struct{}), ended: make(chan struct{}), files: make(map[string]stamp)}
	p.cmd = exec.Command(s.options.Perl, "-I", s.engine, filepath.Join(s.engine, "main.pl"))
	p.cmd.Dir = s.code
	p.cmd.Stdout, p.cmd.Stderr = s.options.Err, s.options.Err
	p.cmd.ExtraFiles = []*os.File{s.listener, its, order}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for us
	p.note(filepath.Join(s.code, "tmp", "restart.txt"))
	if perl := s.options.Site.Spec.Perl; perl != nil {
		for _, name := range []string{perl.App, perl.Startup} {
			if name != "" {
				p.note(filepath.Join(s.code, name))
			}
		}
	}
	if err := p.cmd.Start(); err != nil {
		status.Close()
		return nil, fmt.Errorf("start %s: %w", s.options.Perl, err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		p.listen()
	}()
	go func() {
		err := p.cmd.Wait()
		p.status.SetReadDeadline(time.Now().Add(grace)) // a child of it may hold the other end
		<-heard
		p.status.Close()
		if !p.isSettled() {
			p.settle(fmt.Errorf("perl ended while it loaded the code: %v", err))
		}
		close(p.ended)
	}()
	return p, nil
}

// order is the file that main.pl reads what to run from.
func (s *site) order() (*os.File, error) {
	fd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the order: %w", err)
	}
	f := os.NewFile(uintptr(fd), "order")
	var b []byte
	for _, v := range []string{"account", account(), "home", s.code, "root", ".", "site", strconv.Itoa(number),
		"launch", strconv.FormatInt(s.launch.Launch, 10), "block", string(s.launch.Block), "dev", "1"} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write the order: %w", err)
	}
	return f, nil
}

// listen takes in what the process says until it has ended.
func (p *process) listen() {
	packet := make([]byte, 4096)
	for {
		n, err := p.status.Read(packet)
		if err != nil || n == 0 {
			return
		}
		word, rest, _ := strings.Cut(string(packet[:n]), " ")
		switch word {
		case "file":
			p.note(rest)
		case "broken":
			p.broken = rest
		case "ready":
			p.settle(nil)
		case "failed":
			p.settle(errors.New(rest))
		}
	}
}

func (p *process) settle(err error) {
	if !p.isSettled() {
		p.failed = err
		close(p.settled)
	}
}

func (p *process) isSettled() bool {
	select {
	case <-p.settled:
		return true
	default:
		return false
	}
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// note notes a file as it is now. One that was written since the process began
// may have been read before that: it counts as changed.
func (p *process) note(path string) {
	now := stampOf(path)
	if at := time.Unix(now.changed.Unix()); at.After(p.began) && at.Before(time.Now()) {
		now = stamp{size: -1}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[path] = now
}

// changed says which file has changed, or nothing.
func (p *process) changed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for path, before := range p.files {
		if stampOf(path) != before {
			if short, err := filepath.Rel(p.code, path); err == nil && filepath.IsLocal(short) {
				path = short
			}
			return path + " has changed"
		}
	}
	return ""
}

// drain lets the process leave when its requests are done.
func (p *process) drain() {
	_, _ = p.status.Write([]byte("drain")) // one that has ended does not mind
}

// end ends the process and those of its session, in time or by force.
func (p *process) end() {
	p.drain()
	select {
	case <-p.ended:
	case <-time.After(grace):
		p.kill()
	}
}

// kill ends the process and those of its session by force. Of one that has
// ended the number may be another's.
func (p *process) kill() {
	if !p.hasEnded() {
		_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
		<-p.ended
	}
}
