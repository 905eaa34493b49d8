package privsep

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// ErrBreach says that the other side broke the protocol: drop it.
var ErrBreach = errors.New("protocol breach")

// maxFiles is how many descriptors a packet may carry; one more and the
// kernel cuts them off, which is a breach.
const maxFiles = 4

// ControlSize is the size of the control buffer that Receive needs, in bytes.
var ControlSize = unix.CmsgSpace(maxFiles * 4)

// Receive reads one packet and its descriptors, which are the caller's to
// close, from a SOCK_SEQPACKET socket. buf has MaxPacket+1 bytes, control
// ControlSize. The end is io.EOF; a cut packet is ErrBreach, its descriptors
// are closed. unix.EAGAIN of a socket that does not block is passed on.
func Receive(fd int, buf, control []byte) (packet []byte, files []int, err error) {
	var n, cn, flags int
	for {
		n, cn, flags, _, err = unix.Recvmsg(fd, buf, control, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, nil, err
	}
	files, err = rights(control[:cn], flags)
	if err != nil {
		return nil, nil, err
	}
	if n > MaxPacket {
		CloseAll(files)
		return nil, nil, fmt.Errorf("%w: packet above %d bytes", ErrBreach, MaxPacket)
	}
	if n == 0 {
		CloseAll(files)
		return nil, nil, io.EOF
	}
	return buf[:n], files, nil
}

// rights returns the descriptors of a control message, or closes them all and
// returns ErrBreach where something was cut.
func rights(control []byte, flags int) (files []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("%w: control message: %v", ErrBreach, err)
	}
	for _, msg := range messages {
		if msg.Header.Level != unix.SOL_SOCKET || msg.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&msg)
		if err != nil {
			continue
		}
		files = append(files, got...)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > maxFiles {
		CloseAll(files)
		return nil, fmt.Errorf("%w: packet or descriptors cut off", ErrBreach)
	}
	return files, nil
}

// Send writes one packet with descriptors beside it. It neither blocks nor
// raises SIGPIPE; unix.EAGAIN means that the other side is slow.
func Send(fd int, packet []byte, files ...int) error {
	var control []byte
	if len(files) > 0 {
		control = unix.UnixRights(files...)
	}
	for {
		err := unix.Sendmsg(fd, packet, control, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func wouldBlock(err error) bool { return errors.Is(err, unix.EAGAIN) }

func isGone(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENOTCONN)
}

// CloseAll closes descriptors.
func CloseAll(files []int) {
	for _, fd := range files {
		unix.Close(fd)
	}
}

// DecodeRequest reads a request strictly: all that is not exactly one is
// ErrBreach.
func DecodeRequest(packet []byte) (Request, error) {
	var r Request
	if err := Strict(packet, &r); err != nil {
		return Request{}, err
	}
	if r.ID == 0 || r.Op == "" {
		return Request{}, fmt.Errorf("%w: request without id or op", ErrBreach)
	}
	return r, nil
}

// Strict decodes one JSON object into the struct v points to. No object, an
// unknown field, more behind it: ErrBreach. Nothing at all is an empty object.
func Strict(text []byte, v any) error {
	if len(text) == 0 {
		return nil
	}
	if text[0] != '{' {
		return fmt.Errorf("%w: no object", ErrBreach)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %v", ErrBreach, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more than one object", ErrBreach)
	}
	return nil
}

// HashLaunch is the hex SHA-256 of the JSON of a launch record: two sides that
// hold the same record know it without sending it.
func HashLaunch(l Launch) string {
	text, err := json.Marshal(l)
	if err != nil {
		panic("privsep: a launch record that is no JSON: " + err.Error())
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
