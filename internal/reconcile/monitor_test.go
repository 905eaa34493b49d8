package reconcile

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// monitor is a fake serai-priv: it keeps records and answers.
type monitor struct {
	bell *bell

	mu      sync.Mutex
	fd      int
	said    []string
	tenants map[uint32]privsep.Tenant
	sites   map[uint32]privsep.SiteState
	records map[uint32]privsep.Launch
	routes  *os.File
	kept    []serai.Key      // log pipes taken over
	told    []string         // lines added to logs
	removed map[string]bool  // logs, by tenant: purged?
	refuse  map[string]error // by op
	broken  map[uint32]string
	hold    chan struct{} // launches wait for it where not nil
}

func newMonitor(b *bell) *monitor {
	return &monitor{bell: b, fd: -1, tenants: map[uint32]privsep.Tenant{}, sites: map[uint32]privsep.SiteState{},
		records: map[uint32]privsep.Launch{}, removed: map[string]bool{}, refuse: map[string]error{}, broken: map[uint32]string{}}
}

// connect is a new connection of seraid's; end waits for our side of it.
func (m *monitor) connect(t testing.TB) (*privsep.Conn, func()) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := privsep.NewConn(os.NewFile(uintptr(fds[0]), "monitor"))
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.fd = fds[1]
	m.mu.Unlock()
	var wg sync.WaitGroup
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf, control := make([]byte, privsep.MaxPacket+1), make([]byte, privsep.ControlSize)
		for {
			packet, files, err := privsep.Receive(fds[1], buf, control)
			if err != nil {
				return
			}
			r, err := privsep.DecodeRequest(packet)
			if err != nil {
				t.Error(err)
				return
			}
			r.Args = slices.Clone(r.Args)
			if r.Op == privsep.OpLaunch { // it may take its time
				wg.Go(func() { m.serve(fds[1], r, files) })
			} else {
				m.serve(fds[1], r, files)
			}
		}
	}()
	return conn, func() {
		<-done
		if m.hold != nil {
			close(m.hold)
			m.hold = nil
		}
		wg.Wait()
		m.mu.Lock()
		m.fd = -1
		m.mu.Unlock()
		unix.Close(fds[1])
	}
}

func (m *monitor) serve(fd int, r privsep.Request, files []int) {
	body, err := m.answer(fd, r, files)
	reply := privsep.Reply{ID: r.ID}
	if r.Op == privsep.OpSize && err == nil {
		m.sendSize(fd, reply)
		return
	}
	if e, ok := errors.AsType[*serai.Error](err); ok {
		reply.Error = &privsep.Error{Kind: e.Kind.String(), Msg: e.Msg, Hint: e.Hint}
	} else if body != nil {
		reply.Body, _ = json.Marshal(body)
	}
	text, _ := json.Marshal(reply)
	send(fd, text)
	m.bell.ring()
}

// sendSize hands over what stands for smaps_rollup.
func (m *monitor) sendSize(fd int, reply privsep.Reply) {
	text, _ := json.Marshal(reply)
	f, err := os.Open("testdata/smaps_rollup")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	privsep.Send(fd, text, int(f.Fd()))
}

// send waits where the socket is full.
func send(fd int, text []byte) {
	for privsep.Send(fd, text) == unix.EAGAIN {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1000)
	}
}

func (m *monitor) answer(fd int, r privsep.Request, files []int) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = append(m.said, r.Op)
	if err := m.refuse[r.Op]; err != nil {
		privsep.CloseAll(files)
		return nil, err
	}
	var ref privsep.SiteRef
	json.Unmarshal(r.Args, &ref)
	var uid privsep.TenantRef
	json.Unmarshal(r.Args, &uid)
	switch r.Op {
	case privsep.OpState:
		m.tellState(fd, r.ID)
		return privsep.State{}, nil
	case privsep.OpCreateAccount:
		var a privsep.CreateAccount
		json.Unmarshal(r.Args, &a)
		return privsep.AccountInfo{UID: a.UID, GID: a.UID, Name: a.Name, Home: "/srv/" + a.Name}, nil
	case privsep.OpLookupAccount:
		return privsep.AccountInfo{UID: firstUID + 900, GID: 1, Name: "old", Home: "/home/old"}, nil
	case privsep.OpSetTenant:
		var t privsep.Tenant
		json.Unmarshal(r.Args, &t)
		m.tenants[t.UID] = t
	case privsep.OpDropTenant:
		delete(m.tenants, uid.UID)
	case privsep.OpSetSite:
		var l privsep.Launch
		json.Unmarshal(r.Args, &l)
		s := m.sites[l.Site]
		s.Site, s.UID, s.Launch, s.Hash = l.Site, l.UID, l.Launch, privsep.HashLaunch(l)
		if s.Phase == "" || s.Phase == "off" {
			s.Phase = "asleep"
		}
		m.sites[l.Site], m.records[l.Site] = s, l
	case privsep.OpDropSite:
		delete(m.sites, ref.Site)
		delete(m.records, ref.Site)
	case privsep.OpStop:
		s := m.sites[ref.Site]
		s.Phase, s.PID = "off", 0
		m.sites[ref.Site] = s
	case privsep.OpLaunch:
		return m.launch(ref.Site), nil
	case privsep.OpLogs:
		return nil, serai.Errorf(serai.Unavailable, "it sleeps")
	case privsep.OpSetRoutes:
		if m.routes != nil {
			m.routes.Close()
		}
		m.routes = os.NewFile(uintptr(files[0]), "routes")
	}
	return nil, nil
}

// tellState sends all but the last, empty, part of the state.
func (m *monitor) tellState(fd int, id uint64) {
	part := func(s privsep.State) {
		body, _ := json.Marshal(s)
		text, _ := json.Marshal(privsep.Reply{ID: id, More: true, Body: body})
		send(fd, text)
	}
	for _, t := range m.tenants {
		part(privsep.State{Tenant: &t})
	}
	for _, s := range m.sites {
		part(privsep.State{Site: &s})
	}
}

// launch answers for the code of a site; mu is held but while it waits.
func (m *monitor) launch(number uint32) privsep.LaunchResult {
	record := m.records[number]
	if hold := m.hold; hold != nil {
		m.mu.Unlock()
		m.bell.ring()
		<-hold
		m.mu.Lock()
	}
	if why := m.broken[number]; why != "" {
		return privsep.LaunchResult{Message: why, Millis: 7}
	}
	s := m.sites[number]
	s.Phase, s.PID = "running", 100000+int(number)*100+int(record.Launch)
	m.sites[number] = s
	return privsep.LaunchResult{Loaded: true, PID: s.PID, Millis: 7}
}

// event says something unasked.
func (m *monitor) event(op string, body any) {
	text, _ := json.Marshal(body)
	packet, _ := json.Marshal(privsep.Reply{Op: op, Body: text})
	m.mu.Lock()
	defer m.mu.Unlock()
	send(m.fd, packet)
}

// ops is what was asked, but for the start's questions.
func (m *monitor) ops() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.said), func(op string) bool {
		return op == privsep.OpState || op == privsep.OpSetRoutes || op == privsep.OpLogs
	})
}

func (m *monitor) forgetOps() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = nil
}

func (m *monitor) with(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// Tell implements Logs.
func (m *monitor) Tell(site serai.Key, line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, site.String()+": "+line)
	m.bell.ring()
}

// Keep implements Logs.
func (m *monitor) Keep(site serai.Key, pipe *os.File) {
	pipe.Close()
	m.with(func() { m.kept = append(m.kept, site) })
}

// Remove implements Logs.
func (m *monitor) Remove(tenant string, _ uint32, purge bool) error {
	m.with(func() { m.removed[tenant] = purge })
	return nil
}
