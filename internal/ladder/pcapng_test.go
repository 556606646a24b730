package ladder

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/probe"
)

func writePcapng(t *testing.T, name string, packets ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewPcapng(&b, name)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range packets {
		if err := w.WritePacket(time.Unix(1, int64(i)*1_000_001), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tshark returns what it says about a file, one line a packet.
func tshark(t *testing.T, file []byte, args ...string) []string {
	t.Helper()
	probe.Skip(t, probe.Program("tshark"))
	name := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(name, file, 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tshark", append([]string{"-n", "-r", name}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.Bytes())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func TestPcapngTshark(t *testing.T) {
	var packets [][]byte
	var want []string
	for _, s := range samples(t) {
		if s.protocols == "" {
			continue
		}
		packets = append(packets, s.packet)
		at := time.Unix(1, int64(len(packets)-1)*1_000_001)
		want = append(want, strings.Join([]string{at.UTC().Format("05.000000000"), "node 1", s.protocols}, "|"))
	}
	got := tshark(t, writePcapng(t, "node 1", packets...), "-T", "fields", "-E", "separator=|",
		"-e", "frame.time_epoch", "-e", "frame.interface_name", "-e", "frame.protocols")
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if w := strings.TrimPrefix(want[i], "0"); got[i] != w {
			t.Errorf("packet %d: tshark says %s, want %s", i, got[i], w)
		}
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestPcapngErrors(t *testing.T) {
	w, err := NewPcapng(failing{}, "x")
	if err == nil {
		err = errors.Join(w.WritePacket(time.Unix(0, 0), []byte{0x60}), w.Flush())
	}
	if err == nil {
		t.Error("no error")
	}
}
