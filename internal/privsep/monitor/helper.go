package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/internal/privsep"
)

// Helper is the process `serai-priv helper NAME`: it does one thing that is
// too slow, or too odd, for the resident process, and ends. What the monitor
// asks for itself is answered on descriptor 3 as an Answer.
func Helper(name string) error {
	switch {
	case isolate.IsHelper(name):
		return isolate.Helper(name)
	case name == account.HelperRemoveHome: // under the tenant's uid, in a tree of the tenant's making
		if err := isolate.ProveDropped(); err != nil {
			return err
		}
		_, err := account.Helper(name, nil)
		return err
	case account.IsHelper(name):
		unix.CloseOnExec(3) // the tools that it runs have nothing to answer
		return helpAccount(name, os.Stdin, os.NewFile(3, "answer"))
	}
	return serai.Errorf(serai.Invalid, "there is no helper %q", name)
}

func helpAccount(name string, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	body, err := account.Helper(name, text)
	a := Answer{Body: body}
	if name == account.HelperCreate && err == nil {
		var info account.Info
		if err = json.Unmarshal(body, &info); err == nil {
			a.Body, err = json.Marshal(accountInfo(info))
		}
	}
	if err != nil {
		a = Answer{Error: &privsep.Error{Kind: serai.KindOf(err).String(), Msg: serai.Message(err), Hint: serai.HintOf(err)}, Cause: err.Error()}
	}
	return json.NewEncoder(out).Encode(a)
}
