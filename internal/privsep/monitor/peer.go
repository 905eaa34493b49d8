package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/privsep"
)

const (
	maxOut = 64 << 20         // bytes that may wait for a peer before it is dropped
	grace  = 30 * time.Second // for our own processes to leave
)

// startPeer runs seraid or serai-proxy as its user; each start has sockets of
// its own.
func (m *Monitor) startPeer(p *peer) {
	p.Began = time.Now()
	p.Gen++
	if err := m.runPeer(p); err != nil {
		m.log.Error("process not started", keyProcess, p.Name, keyCause, err)
		p.Sock.close()
		m.peerDown(p)
		return
	}
	m.log.Info("process started", keyProcess, p.Name, keyPID, p.PID)
	if p.Name == seraid {
		for _, s := range m.Sites {
			if s.LogTaken = false; s.LogR != 0 {
				m.tell(privsep.EvLogs, privsep.SiteRef{Site: s.Record.Site}, seraid)
			}
		}
		for _, z := range m.Zygotes {
			if z.Up {
				m.tell(privsep.EvZygote, z.Event, seraid)
			}
		}
		m.tellUpgrades()
	}
}

func (m *Monitor) runPeer(p *peer) error {
	text, err := json.Marshal(m.Config)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	conf, err := memfd("config", text)
	if err != nil {
		return err
	}
	defer unix.Close(conf)
	ours, theirs, err := packetPair()
	if err != nil {
		return err
	}
	defer unix.Close(theirs)
	p.Sock = fd(ours)

	user, files := m.Config.Users.Daemon, []int{conf, theirs, int(m.API)}
	args := []string{"--config-fd", "3", "--priv-fd", "4", "--api-fd", "5"}
	if p.Name == proxy {
		user, files = m.Config.Users.Proxy, []int{conf, theirs, int(m.Control)}
		args = []string{"--config-fd", "3", "--priv-fd", "4", "--control-fd", "5", "--http-fds", fdList(6, len(m.HTTP))}
		for _, l := range m.HTTP {
			files = append(files, int(l))
		}
	}
	as, err := account.LookupName(user)
	if err != nil {
		return fmt.Errorf("look up account %s: %w", user, err)
	}
	p.PID, err = spawnProgram(command{path: filepath.Join(m.Config.Libexec, p.Name), args: args, files: files, uid: as.UID, gid: as.GID})
	if err != nil {
		return err
	}
	if err := m.joinOps(opsGroup[p.Name], p.PID); err != nil {
		unix.Kill(p.PID, unix.SIGKILL)
		m.log.Error("process without its cgroup", keyProcess, p.Name, keyCause, err)
	}
	return m.watchPeer(p)
}

// opsGroup names the cgroups of the peers beneath ops.
var opsGroup = map[string]string{seraid: "seraid", proxy: "proxy"}

// watchPeer reads requests while nothing waits to be written: a peer that does
// not listen is not served.
func (m *Monitor) watchPeer(p *peer) error {
	events := uint32(unix.EPOLLIN)
	if len(p.Out) > 0 {
		events = unix.EPOLLOUT
	}
	return m.poll.watch(p.Sock, events, func(events uint32) {
		if events&unix.EPOLLOUT != 0 {
			m.flush(p)
		}
		if events&^unix.EPOLLOUT != 0 {
			m.peerSaid(p)
		}
	})
}

func (m *Monitor) peerSaid(p *peer) {
	packet, files, err := privsep.Receive(int(p.Sock), m.buf, m.control)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		m.hangUp(p)
		return
	case err == nil:
		err = m.serve(p, packet, files)
	}
	if err != nil {
		m.breach(p, err)
	}
}

// breach drops a peer that is broken or taken over; another one follows it.
func (m *Monitor) breach(p *peer, why error) {
	m.log.Error("process dropped", keyProcess, p.Name, keyPID, p.PID, keyCause, why)
	m.hangUp(p)
	if p.PID != 0 {
		unix.Kill(p.PID, unix.SIGKILL) // our child, not reaped: the number is its own
	}
}

// hangUp ends the connection to a peer. A peer without one leaves; if not, it
// is killed when its time is over.
func (m *Monitor) hangUp(p *peer) {
	if p.Sock == 0 {
		return
	}
	m.poll.forget(p.Sock)
	p.Sock.close()
	for i := range p.Out {
		p.Out[i].File.close()
	}
	p.Out, p.size = nil, 0
	p.StartAt = time.Now().Add(grace)
	m.poll.at(p.StartAt, p)
}

// peerDown is called when the process of p was reaped or could not be started.
func (m *Monitor) peerDown(p *peer) {
	m.hangUp(p)
	p.PID = 0
	if m.stopping > 0 {
		m.nextStop()
		return
	}
	if time.Since(p.Began) > grace {
		p.Fails = 0
	}
	wait := min(time.Duration(p.Fails)*time.Second, 10*time.Second)
	p.Fails++
	p.StartAt = time.Now().Add(wait)
	m.poll.at(p.StartAt, p)
}

// tick implements ticker: time to start, or to be killed.
func (p *peer) tick(m *Monitor, now time.Time) {
	switch {
	case now.Before(p.StartAt):
	case p.PID == 0 && m.stopping == 0:
		m.startPeer(p)
	case p.PID != 0 && (p.Sock == 0 || m.stopping > 0):
		unix.Kill(p.PID, unix.SIGKILL)
	}
}

// reply answers a request with a body, or {}.
func (m *Monitor) reply(w waiter, a answer) {
	body := a.body
	if body == nil {
		body = none{}
	}
	m.send(w, privsep.Reply{ID: w.ID}, body, a.file)
	if a.once {
		a.file.close()
	}
}

// refuse answers a request with an error. What is not meant for callers is in
// the log only.
func (m *Monitor) refuse(w waiter, op string, err error) {
	if serai.KindOf(err) == serai.Internal {
		m.log.Error("request failed", "request", op, keyProcess, w.Peer, keyCause, err)
	}
	m.send(w, privsep.Reply{ID: w.ID, Error: &privsep.Error{
		Kind: serai.KindOf(err).String(), Msg: serai.Message(err), Hint: serai.HintOf(err)}}, nil, 0)
}

// tell sends an event to peers, if they are there.
func (m *Monitor) tell(op string, body any, names ...string) {
	for _, name := range names {
		if p := m.Peers[name]; p != nil {
			m.send(waiter{Peer: name, Gen: p.Gen}, privsep.Reply{Op: op}, body, 0)
		}
	}
}

// send sends to the process that asked, if it is still the one that runs.
func (m *Monitor) send(w waiter, r privsep.Reply, body any, file fd) {
	p := m.Peers[w.Peer]
	if p == nil || p.Gen != w.Gen || p.Sock == 0 {
		return
	}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			m.log.Error("reply not sent", keyProcess, p.Name, keyCause, err)
			return
		}
		r.Body = text
	}
	data, err := json.Marshal(r)
	if err != nil || len(data) > privsep.MaxPacket {
		m.log.Error("reply not sent", keyProcess, p.Name, "bytes", len(data), keyCause, err)
		return
	}
	if len(p.Out) == 0 {
		err := sendFile(p.Sock, data, file)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EAGAIN) {
			m.hangUp(p)
			return
		}
		m.poll.change(p.Sock, unix.EPOLLOUT)
	}
	out := packet{Data: data}
	if file != 0 {
		n, err := unix.FcntlInt(uintptr(file), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			m.log.Error("descriptor not kept", keyProcess, p.Name, keyCause, err)
			return
		}
		out.File = fd(n)
	}
	p.Out = append(p.Out, out)
	if p.size += len(data); p.size > maxOut {
		m.breach(p, errors.New("it does not read what it is sent"))
	}
}

func sendFile(sock fd, data []byte, file fd) error {
	if file == 0 {
		return privsep.Send(int(sock), data)
	}
	return privsep.Send(int(sock), data, int(file))
}

// flush sends what waits for p.
func (m *Monitor) flush(p *peer) {
	for len(p.Out) > 0 {
		err := sendFile(p.Sock, p.Out[0].Data, p.Out[0].File)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			m.hangUp(p)
			return
		}
		p.size -= len(p.Out[0].Data)
		p.Out[0].File.close()
		p.Out = p.Out[1:]
	}
	m.poll.change(p.Sock, unix.EPOLLIN)
}
