package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/mail"
)

// maxMail bounds a message with its envelope, in bytes, whatever the plan
// says. It is more than spec.mail.size may be.
const maxMail = 257 << 20

// sendMail takes a message of a tenant's process. Operators have no plan that
// it could count against.
func (s *Server) sendMail(c *call) (any, error) {
	if c.class == Operator {
		return nil, serai.Errorf(serai.Denied, "mail is sent here by tenants, and counted against their plans").WithHint("use the machine's own mailer")
	}
	return s.ctl.SendMail(c.r.Context(), mail.Sender{UID: c.uid, Tenant: c.tenant, Site: c.site}, &mailBody{Reader: c.r.Body, rc: http.NewResponseController(c.w)})
}

// mailBody is a message as it comes. Its time begins with the first read: the
// sender may have had to wait for its turn.
type mailBody struct {
	io.Reader
	rc    *http.ResponseController
	begun bool
}

func (b *mailBody) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		_ = b.rc.SetReadDeadline(time.Now().Add(bodyTime))
	}
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		// From here on the connection stays quiet for as long as the relay takes.
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// mailed is what a tenant has mailed, and what its plan allows.
func (s *Server) mailed(ctx context.Context, t *serai.Tenant) (*client.Mailed, error) {
	plan, err := s.store.Get(ctx, serai.Key{Kind: serai.KindPlan, Name: t.Spec.Plan})
	if err != nil {
		return nil, err
	}
	limits := plan.(*serai.Plan).Spec.Mail
	m := &client.Mailed{OfHour: limits.Hour, OfDay: limits.Day}
	m.Hour, m.Day, err = s.ctl.Mailed(ctx, t.Status.UID)
	return m, err
}

// mailLog sends the lines of the log of a tenant's mail.
func (s *Server) mailLog(c *call) (any, error) {
	if _, err := s.find(c, c.key()); err != nil {
		return nil, err
	}
	return s.logText(c, func(ctx context.Context, lines int, follow bool) (io.ReadCloser, error) {
		return s.ctl.MailLog(ctx, c.key().Name, lines, follow)
	})
}
