package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// authors counts the accounts of scripts: nobody knows them, and nothing else
// runs under them.
var authors atomic.Int32

// TestDev runs `serai dev` as an account without any right: the program author.
// $HOME is that account's, $TMPDIR too; $PORT is free.
func TestDev(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/dev", UpdateScripts: *update,
		RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: setupDev,
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"await": await, "gone": gone},
	})
}

func setupDev(env *testscript.Env) error {
	home, err := os.MkdirTemp("", "serai")
	if err != nil {
		return err
	}
	uid := firstUID + 90 + int(authors.Add(1))
	env.Defer(func() {
		_ = exec.Command("pkill", "-KILL", "-U", fmt.Sprint(uid)).Run() // of a script that failed
		os.RemoveAll(home)
	})
	if err := os.Chmod(home, 0o755); err != nil {
		return err
	}
	// A copy: the directory of the test binary is closed to others.
	program := filepath.Join(home, "serai")
	if err := copyFile(program, "/proc/self/exe"); err != nil {
		return err
	}
	author := fmt.Sprintf("#!/bin/sh\nexec setpriv --reuid=%[1]d --regid=%[1]d --clear-groups --inh-caps=-all env %[2]s=1 %[3]s \"$@\"\n", uid, mainEnv, program)
	if err := os.WriteFile(filepath.Join(home, "author"), []byte(author), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(home, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if err := os.Chown(tmp, uid, uid); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	for name, value := range map[string]string{"HOME": home, "TMPDIR": tmp, "PATH": home + ":" + env.Getenv("PATH"),
		"PORT": fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "AUTHOR": fmt.Sprint(uid)} {
		env.Setenv(name, value)
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, in)
	return err
}

// gone waits until no process of the author runs, and fails where a file of
// one is left.
func gone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: gone")
	}
	for end := time.Now().Add(20 * time.Second); exec.Command("pgrep", "-U", ts.Getenv("AUTHOR")).Run() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Check(ts.Exec("ps", "-fU", ts.Getenv("AUTHOR")))
			ts.Fatalf("processes are left:\n%s", ts.ReadFile("stdout"))
		}
	}
}
