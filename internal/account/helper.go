package account

import (
	"bytes"
	"encoding/json"
	"fmt"

	"serai.dev/serai/internal/config"
)

// The one-shot helpers of this package: what a process of its own is started
// for, as `serai-priv helper NAME`.
const (
	HelperCreate     = "create-account" // CreateArgs → Info
	HelperRemove     = "remove-account" // RemoveArgs → {}
	HelperRemoveHome = "remove-home"    // started by Remove alone, under the tenant's uid
)

// CreateArgs is the input of HelperCreate.
type CreateArgs struct {
	Accounts config.Accounts `json:"accounts"`
	UID      uint32          `json:"uid"`
	Name     string          `json:"name"` // the tenant's, without prefix
}

// RemoveArgs is the input of HelperRemove.
type RemoveArgs struct {
	Accounts config.Accounts `json:"accounts"`
	UID      uint32          `json:"uid"`
	Purge    bool            `json:"purge"`
}

// IsHelper reports whether a helper is this package's.
func IsHelper(name string) bool {
	return name == HelperCreate || name == HelperRemove || name == HelperRemoveHome
}

// Helper does what the process is for. In is its standard input, as JSON, and
// out goes to its standard output. HelperRemoveHome has neither; the first line
// of its standard error is to be err.
func Helper(name string, in []byte) (out []byte, err error) {
	switch name {
	case HelperCreate:
		var args CreateArgs
		if err := decode(in, &args); err != nil {
			return nil, err
		}
		i, err := Create(args.Accounts, args.UID, args.Name)
		if err != nil {
			return nil, err
		}
		return json.Marshal(i)
	case HelperRemove:
		var args RemoveArgs
		if err := decode(in, &args); err != nil {
			return nil, err
		}
		return []byte("{}"), Remove(args.Accounts, args.UID, args.Purge)
	case HelperRemoveHome:
		return nil, emptyHome()
	}
	return nil, fmt.Errorf("no helper %q", name)
}

func decode(in []byte, args any) error {
	d := json.NewDecoder(bytes.NewReader(in))
	d.DisallowUnknownFields()
	if err := d.Decode(args); err != nil {
		return fmt.Errorf("read arguments: %w", err)
	}
	return nil
}
