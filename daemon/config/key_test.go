package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadKey(t *testing.T) {
	const hex = "000102030405060708090a0b0c0d0e0f"
	want := []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	for _, tt := range []struct{ text, err string }{
		{hex, ""},
		{"0001 0203\n04050607 08090A0B\t0c0d0e0f\n", ""},
		{"", "EOF"},
		{hex[2:], "15 octets"},
		{hex + "0", "not hexadecimal"},
		{"-----BEGIN", "not hexadecimal"},
		{strings.Repeat(hex, 200), "longer than"},
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := ReadKey(file)
		switch {
		case tt.err == "" && (err != nil || !bytes.Equal(key, want)):
			t.Errorf("%q: %x, %v", tt.text, key, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), "config: ")):
			t.Errorf("%.20q: %v, want %s", tt.text, err, tt.err)
		}
	}
	if _, err := ReadKey("nowhere/key"); !os.IsNotExist(err) && !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}
