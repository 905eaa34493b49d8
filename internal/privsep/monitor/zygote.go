package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/internal/privsep"
)

// perlPath is the perl of the machine; the zygotes have no PATH of a tenant.
const perlPath = "/usr/bin/perl"

// A field is a name and a value of a message to or from a zygote.
type field struct{ name, value string }

// encodeFields writes a message of docs/reference/zygote-protocol.md.
func encodeFields(fields []field) []byte {
	var b []byte
	for _, f := range fields {
		for _, s := range []string{f.name, f.value} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
	}
	return b
}

func decodeFields(b []byte) ([]field, error) {
	var list []string
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errors.New("a length is cut off")
		}
		n := binary.BigEndian.Uint32(b)
		b = b[4:]
		if uint64(n) > uint64(len(b)) {
			return nil, errors.New("a value is cut off")
		}
		list = append(list, string(b[:n]))
		b = b[n:]
	}
	if len(list)%2 != 0 {
		return nil, errors.New("a name without a value")
	}
	fields := make([]field, 0, len(list)/2)
	for pair := range slices.Chunk(list, 2) {
		fields = append(fields, field{pair[0], pair[1]})
	}
	return fields, nil
}

// handOver gives p to its zygote, or lets it wait until that can take it.
func (m *Monitor) handOver(p *process) {
	z := m.zygote(p.site.Record.Zygote)
	if !z.Up {
		z.waiting = append(z.waiting, p)
		return
	}
	err := m.spawn(z, p)
	switch {
	case err == nil:
	case errors.Is(err, unix.EAGAIN):
		if len(z.waiting) == 0 {
			m.poll.change(z.Control, unix.EPOLLIN|unix.EPOLLOUT)
		}
		z.waiting = append(z.waiting, p)
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		z.waiting = append(z.waiting, p) // for the one that follows
	default:
		m.failed(p, "it could not be handed to the zygote: "+err.Error())
	}
}

// handOverWaiting tries all that wait for z again.
func (m *Monitor) handOverWaiting(z *zygote) {
	waiting := z.waiting
	z.waiting = nil
	for _, p := range waiting {
		if p.Phase == starting && !p.Spawned {
			m.handOver(p)
		}
	}
}

// spawn asks a zygote to start p: the site's own process, or a task, which gets
// no listener.
func (m *Monitor) spawn(z *zygote, p *process) error {
	s, t := p.site, p.site.tenant
	ours, theirs, err := statusPair()
	if err != nil {
		return err
	}
	defer unix.Close(theirs)
	joins, err := m.cgroups.JoinFiles(t.UID, p.leaf())
	if err != nil {
		unix.Close(ours)
		return fmt.Errorf("open cgroup %s: %w", p.leaf(), err)
	}
	defer closeFiles(joins)
	op, block, files := "spawn", s.Record.Block, []int{int(s.Listener)}
	if p.Task != nil {
		op, block, files = "run", p.Task.Block, nil
	}
	unix.SetNonblock(int(s.Listener), true) // the site's code may have changed that
	uid := strconv.FormatUint(uint64(t.UID), 10)
	number := strconv.FormatUint(uint64(s.Record.Site), 10)
	flag := map[bool]string{false: "0", true: "1"}
	// In a file, which the zygote does not read: what it had in its memory, all
	// later sites would be forked with.
	order, err := memfd("order", encodeFields([]field{
		{"uid", uid}, {"gid", strconv.FormatUint(uint64(t.GID), 10)}, {"account", t.Name}, {"home", t.Home},
		{"site", number}, {"launch", strconv.FormatInt(s.Record.Launch, 10)}, {"label", uid + "/" + number},
		{"root", s.Record.Root}, {"exec", flag[z.Name == serai.PreloadNone]}, {"merge", flag[t.Merge]}, {"block", string(block)},
	}))
	if err != nil {
		unix.Close(ours)
		return err
	}
	defer unix.Close(order)
	files = append(files, int(s.LogW), theirs, order)
	for _, f := range joins {
		files = append(files, int(f.Fd()))
	}
	if err := privsep.Send(int(z.Control), encodeFields([]field{{"op", op}}), files...); err != nil {
		unix.Close(ours)
		return err
	}
	p.Launch, p.Hash = s.Record.Launch, s.Hash
	p.Status, p.Spawned = fd(ours), true
	p.Tries++
	return m.watchStatus(p)
}

func (m *Monitor) watchStatus(p *process) error {
	return m.poll.watch(p.Status, unix.EPOLLIN|unix.EPOLLRDHUP, func(uint32) { m.heard(p) })
}

// statusPair makes a status socket; on our end the kernel attests the writer.
func statusPair() (ours, theirs int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("make a status socket: %w", err)
	}
	if err := errors.Join(
		unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1),
		unix.SetNonblock(pair[0], true),
	); err != nil {
		privsep.CloseAll(pair[:])
		return 0, 0, fmt.Errorf("prepare a status socket: %w", err)
	}
	return pair[0], pair[1], nil
}

// zygote returns the zygote of a set, started at first use.
func (m *Monitor) zygote(name string) *zygote {
	z := m.Zygotes[name]
	if z == nil {
		z = &zygote{Name: name}
		m.Zygotes[name] = z
		m.startZygote(z)
	}
	return z
}

// startZygote runs perl as root with nothing but what it needs to give that up.
func (m *Monitor) startZygote(z *zygote) {
	now := time.Now()
	z.Began, z.PerlDir = now, m.PerlDir
	if err := m.runZygote(z); err != nil {
		z.Control.close()
		m.zygoteDown(z, err.Error())
		return
	}
	m.poll.at(now.Add(loadLimit), z)
}

func (m *Monitor) runZygote(z *zygote) error {
	program, err := isolate.SeccompProgram()
	if err != nil {
		return fmt.Errorf("make the seccomp program: %w", err)
	}
	filter, err := memfd("seccomp", program)
	if err != nil {
		return err
	}
	defer unix.Close(filter)
	ours, theirs, err := packetPair()
	if err != nil {
		return err
	}
	defer unix.Close(theirs)
	z.Control = fd(ours)
	z.PID, err = spawnProgram(command{
		path:  perlPath,
		args:  []string{"-I", m.PerlDir, filepath.Join(m.PerlDir, "zygote.pl")},
		files: []int{theirs, int(m.UserNS), int(m.MountNS), filter},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", perlPath, err)
	}
	if err := m.joinOps("zygote-"+z.Name, z.PID); err != nil {
		unix.Kill(z.PID, unix.SIGKILL) // our child, not reaped: the number is its own
		return err
	}
	hello := []field{{"op", "config"}, {"uid", strconv.FormatUint(uint64(m.Config.Accounts.ZygoteUID()), 10)}, {"set", z.Name}}
	for _, module := range m.Config.Zygotes[z.Name].Modules {
		hello = append(hello, field{"module", module})
	}
	if err := privsep.Send(int(z.Control), encodeFields(hello)); err != nil {
		return fmt.Errorf("write the zygote's configuration: %w", err)
	}
	return m.watchZygote(z)
}

func (m *Monitor) watchZygote(z *zygote) error {
	return m.poll.watch(z.Control, unix.EPOLLIN, func(events uint32) {
		if events&unix.EPOLLOUT != 0 {
			m.poll.change(z.Control, unix.EPOLLIN)
			m.handOverWaiting(z)
		}
		if events&^unix.EPOLLOUT != 0 {
			m.zygoteSaid(z)
		}
	})
}

func (m *Monitor) zygoteSaid(z *zygote) {
	packet, files, err := privsep.Receive(int(z.Control), m.buf, m.control)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	privsep.CloseAll(files)
	var fields []field
	if err == nil {
		fields, err = decodeFields(packet)
	}
	if err != nil || len(fields) == 0 || fields[0] != (field{"op", "up"}) || z.Up {
		// At the end of file the reaper will tell why; nonsense is killed.
		m.poll.forget(z.Control)
		if z.PID != 0 {
			unix.Kill(z.PID, unix.SIGKILL)
		}
		return
	}
	m.zygoteUp(z, fields[1:])
}

func (m *Monitor) zygoteUp(z *zygote, fields []field) {
	z.Up, z.told = true, true
	event := privsep.ZygoteEvent{Name: z.Name, PID: z.PID, State: "up"}
	var broken []string
	for _, f := range fields {
		switch f.name {
		case "missing":
			event.Missing = append(event.Missing, f.value)
		case "broken":
			broken = append(broken, f.value)
		}
	}
	event.Message = strings.Join(broken, "; ")
	m.log.Info("zygote up", keyZygote, z.Name, keyPID, z.PID, "missing", event.Missing, "broken", broken)
	z.Event = event
	m.tell(privsep.EvZygote, event, seraid)
	if old := m.Zygotes[z.Name]; old != z {
		z.waiting = append(z.waiting, old.waiting...)
		m.Zygotes[z.Name] = z
		m.retire(old)
	}
	if age := m.Config.Zygotes[z.Name].Restart; age > 0 {
		m.poll.at(z.Began.Add(age), z)
	}
	m.handOverWaiting(z)
	m.checkReady()
}

// retire lets a zygote leave: its sites live on.
func (m *Monitor) retire(z *zygote) {
	m.poll.forget(z.Control)
	z.Control.close()
	if z.PID != 0 {
		m.Retired = append(m.Retired, z.PID)
		z.PID = 0
	}
}

// zygoteDown is called when z ended or could not be started.
func (m *Monitor) zygoteDown(z *zygote, why string) {
	m.poll.forget(z.Control)
	z.Control.close()
	lived := time.Since(z.Began)
	wasUp := z.Up
	z.PID, z.Up, z.told = 0, false, true
	if m.stopping > 0 {
		return
	}
	if wasUp && lived > stable {
		z.Fails = 0
	}
	z.Fails++
	z.StartAt = time.Now().Add(backoff(z.Fails - 1))
	m.log.Error("zygote down", keyZygote, z.Name, keyCause, why)
	m.tell(privsep.EvZygote, privsep.ZygoteEvent{Name: z.Name, State: "down", Message: why}, seraid)
	m.poll.at(z.StartAt, z)
	m.checkReady()
}

// due is when z is to be looked at next.
func (m *Monitor) due(z *zygote) time.Time {
	restart := m.Config.Zygotes[z.Name].Restart
	switch {
	case z.PID == 0:
		return z.StartAt
	case !z.Up:
		return z.Began.Add(loadLimit)
	case z.PerlDir != m.PerlDir || restart <= 0:
		return time.Now()
	}
	return z.Began.Add(restart)
}

// tick implements ticker: to be started, up for too long, or not up for too
// long.
func (z *zygote) tick(m *Monitor, now time.Time) {
	current := m.Zygotes[z.Name]
	if m.stopping > 0 || current != z && (current == nil || current.Next != z) {
		return
	}
	set := m.Config.Zygotes[z.Name]
	switch {
	case z.PID == 0:
		if !now.Before(z.StartAt) {
			m.startZygote(z)
		}
	case !z.Up && now.Sub(z.Began) >= loadLimit:
		unix.Kill(z.PID, unix.SIGKILL)
	case z.Up && z.Next == nil && (set.Restart > 0 && now.Sub(z.Began) >= set.Restart || z.PerlDir != m.PerlDir):
		z.Next = &zygote{Name: z.Name}
		m.startZygote(z.Next)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
