package route

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxRecord is the size of the largest record's JSON, in bytes.
const MaxRecord = 1 << 20

const (
	epochSize  = 8 // at the start of the log
	headerSize = 8 // length and sum, before each record
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Log is the writer's side: seraid appends to it. Its methods may be called
// concurrently.
type Log struct {
	mu    sync.Mutex
	f     *os.File
	epoch uint64
	end   int64
	live  map[key]int64 // size of the newest record of each object
	sum   int64         // of live
}

// key names the object that a record replaces.
type key struct {
	tenant bool
	id     uint32
}

// Create makes an empty log in a new memfd that is sealed against shrinking,
// with an epoch drawn at random.
func Create() (*Log, error) {
	fd, err := unix.MemfdCreate("serai routes", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("create route log: %w", err)
	}
	f := os.NewFile(uintptr(fd), "routes")
	var epoch [epochSize]byte
	rand.Read(epoch[:])
	if _, err := f.WriteAt(epoch[:], 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write route log: %w", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal route log: %w", err)
	}
	return &Log{f: f, epoch: binary.BigEndian.Uint64(epoch[:]), end: epochSize, live: make(map[key]int64)}, nil
}

// Append adds a record and returns how far the log now reaches. A record that
// is too large or changes not exactly one thing is refused. After an error the
// log is as it was.
func (l *Log) Append(r Record) (Extent, error) {
	k, gone, err := r.object()
	if err != nil {
		return Extent{}, err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return Extent{}, fmt.Errorf("encode route record: %w", err)
	}
	if len(text) > MaxRecord {
		return Extent{}, fmt.Errorf("encode route record: %d bytes, at most %d fit", len(text), MaxRecord)
	}
	record := make([]byte, headerSize, headerSize+len(text))
	binary.BigEndian.PutUint32(record, uint32(len(text)))
	binary.BigEndian.PutUint32(record[4:], crc32.Checksum(text, castagnoli))
	record = append(record, text...)

	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.f.WriteAt(record, l.end); err != nil {
		return Extent{}, fmt.Errorf("write route log: %w", err)
	}
	l.end += int64(len(record))
	l.sum -= l.live[k]
	delete(l.live, k)
	if !gone {
		l.live[k] = int64(len(record))
		l.sum += int64(len(record))
	}
	return Extent{Epoch: l.epoch, Offset: l.end}, nil
}

// object names what the record changes, and whether it removes it.
func (r Record) object() (k key, gone bool, err error) {
	n := 0
	if r.Site != nil {
		n, k = n+1, key{id: r.Site.Number}
	}
	if r.Drop != 0 {
		n, k, gone = n+1, key{id: r.Drop}, true
	}
	if r.Tenant != nil {
		n, k = n+1, key{tenant: true, id: r.Tenant.UID}
	}
	if r.Forget != 0 {
		n, k, gone = n+1, key{tenant: true, id: r.Forget}, true
	}
	if n != 1 {
		return key{}, false, fmt.Errorf("a route record changes %d things, it must change one", n)
	}
	return k, gone, nil
}

// Extent is how far the log reaches.
func (l *Log) Extent() Extent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Extent{Epoch: l.epoch, Offset: l.end}
}

// Garbage is the part of the log that later records made out of date, 0 to 1,
// and the size of the log in bytes: a small log is not worth writing anew.
func (l *Log) Garbage() (ratio float64, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == epochSize {
		return 0, l.end
	}
	return 1 - float64(l.sum)/float64(l.end-epochSize), l.end
}

// File is the memfd, to be passed on; it stays the log's.
func (l *Log) File() *os.File { return l.f }

// Close gives up the memfd; others may hold it still.
func (l *Log) Close() error { return l.f.Close() }

// A Reader is the proxy's side. Its methods must not be called concurrently.
type Reader struct {
	f      *os.File
	epoch  uint64
	offset int64
	buf    []byte
}

// ErrTorn is in the chain of what Next returns where a record is not whole or
// not what was written.
var ErrTorn = errors.New("torn record")

// Open reads the epoch of a log. It takes over f, whose file offset it neither
// uses nor changes.
func Open(f *os.File) (*Reader, error) {
	var epoch [epochSize]byte
	if _, err := f.ReadAt(epoch[:], 0); err != nil {
		return nil, fmt.Errorf("read epoch of route log: %w", err)
	}
	return &Reader{f: f, epoch: binary.BigEndian.Uint64(epoch[:]), offset: epochSize}, nil
}

// Next returns the next record, or io.EOF at the end of what is written so
// far. A torn record is an error that names the offset and wraps ErrTorn. After
// any error Next may be called again: it tries the same record, which its
// writer may have completed.
func (r *Reader) Next() (Record, error) {
	var header [headerSize]byte
	n, err := r.f.ReadAt(header[:], r.offset)
	if n == 0 && err == io.EOF {
		return Record{}, io.EOF
	}
	if n < headerSize {
		return Record{}, r.torn("its header ends early")
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > MaxRecord {
		return Record{}, r.torn(fmt.Sprintf("it claims %d bytes", size))
	}
	if cap(r.buf) < int(size) {
		r.buf = make([]byte, size)
	}
	text := r.buf[:size]
	if n, err := r.f.ReadAt(text, r.offset+headerSize); n < len(text) {
		return Record{}, r.torn(fmt.Sprintf("%d of %d bytes are there: %v", n, len(text), err))
	}
	if crc32.Checksum(text, castagnoli) != binary.BigEndian.Uint32(header[4:]) {
		return Record{}, r.torn("its sum does not fit")
	}
	var rec Record
	if err := json.Unmarshal(text, &rec); err != nil {
		return Record{}, r.torn(err.Error())
	}
	if _, _, err := rec.object(); err != nil {
		return Record{}, r.torn(err.Error())
	}
	r.offset += headerSize + int64(size)
	return rec, nil
}

func (r *Reader) torn(why string) error {
	return fmt.Errorf("read route log at offset %d: %w: %s", r.offset, ErrTorn, why)
}

// Extent is how far the log was read.
func (r *Reader) Extent() Extent { return Extent{Epoch: r.epoch, Offset: r.offset} }

// Close gives up the memfd.
func (r *Reader) Close() error { return r.f.Close() }
