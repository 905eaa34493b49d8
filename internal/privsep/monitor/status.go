package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai/internal/privsep"
)

// statusLine is the size of the largest packet on a status socket.
const statusLine = 4096

// heard reads the status socket of a process that loads. What a site says after
// "ready" is read once a second: the tenant's code could flood us.
func (m *Monitor) heard(p *process) {
	buf, control := make([]byte, statusLine), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for p.Phase == starting && p.Status != 0 {
		n, cn, flags, _, err := unix.Recvmsg(int(p.Status), buf, control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return
		}
		if err != nil || n == 0 {
			m.silent(p)
			return
		}
		if flags&unix.MSG_TRUNC != 0 {
			m.failed(p, "its process broke the protocol of the status socket")
			return
		}
		m.said(p, string(buf[:n]), writer(control[:cn]))
	}
}

const (
	wordOnce   = unix.EPOLLIN | unix.EPOLLONESHOT
	wordDelay  = 200 * time.Millisecond // those that come together are one
	wordEvery  = time.Second
	maxHearing = 64 // words at once
)

// listen hears what the main process of a site asks for while it runs.
func (m *Monitor) listen(p *process) {
	if p.Status == 0 {
		return
	}
	if err := m.poll.watch(p.Status, wordOnce, func(uint32) { m.poll.at(time.Now().Add(wordDelay), (*words)(p)) }); err != nil {
		m.log.Warn("site not heard", keySite, p.site.Record.Site, keyCause, err)
	}
}

// words is what a main process has said.
type words process

// tick implements ticker: what was said is read, and a second later more.
func (w *words) tick(m *Monitor, now time.Time) {
	p := (*process)(w)
	if p.Phase != running || p.Status == 0 {
		return
	}
	asked := false
	buf, control := make([]byte, statusLine), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for range maxHearing {
		n, cn, _, _, err := unix.Recvmsg(int(p.Status), buf, control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 { // its end of file is no reason to end a site
			m.poll.forget(p.Status)
			p.Status.close()
			return
		}
		if err != nil {
			break
		}
		asked = asked || string(buf[:n]) == "reload" && writer(control[:cn]).Uid == p.site.Record.UID
	}
	if asked {
		p.site.Reload = true
		m.tell(privsep.EvReload, privsep.SiteRef{Site: p.site.Record.Site}, seraid)
	}
	p.Due = now.Add(wordEvery)
	m.poll.at(p.Due, p)
}

// advise says a word to a main process, if it can hear.
func (m *Monitor) advise(p *process, word string) {
	if p.Status != 0 {
		privsep.Send(int(p.Status), []byte(word))
	}
}

// writer is who wrote a packet, as the kernel attests it.
func writer(control []byte) unix.Ucred {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return unix.Ucred{}
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return *cred
		}
	}
	return unix.Ucred{}
}

func (m *Monitor) said(p *process, line string, by unix.Ucred) {
	uid, pid := p.site.Record.UID, int(by.Pid)
	word, rest, _ := strings.Cut(line, " ")
	switch {
	case line == "up" && p.PID == 0 && by.Uid == uid && (m.cgroups.Contains(uid, p.site.Record.Site, pid) || isExiting(pid)):
		p.PID = pid
		m.mains[pid] = p
		if p.Task != nil {
			m.taskUp(p)
		}
	case line == "ready" && p.PID != 0 && pid == p.PID:
		m.loaded(p)
	case word == "failed" && by.Uid == uid:
		m.failed(p, rest)
	case word == "failed" && p.PID == 0: // before the drop: our own launcher speaks
		m.failed(p, rest)
	default:
		m.failed(p, "its process broke the protocol of the status socket")
	}
}

// silent is called at the end of file of a status socket of a process that
// loads. Before "up" no code of the tenant has run: the zygote went away.
func (m *Monitor) silent(p *process) {
	m.poll.forget(p.Status)
	p.Status.close()
	if p.PID == 0 && p.Tries < 3 {
		p.Spawned = false
		m.handOver(p)
		return
	}
	// The reaper knows more, but not yet: files are closed before the end.
	p.Due = time.Now().Add(time.Second)
	m.poll.at(p.Due, p)
}

// isExiting reports whether pid is about to end, or has and was not reaped: the
// kernel shows it in no cgroup then, but the number is still its own.
func isExiting(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if err != nil || len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	const exiting = 4 // PF_EXITING
	return err == nil && flags&exiting != 0
}
