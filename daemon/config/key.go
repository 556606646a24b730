package config

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
)

// minKey is how many octets a key has at least.
const minKey = 16

// maxKeyFile limits what is read of a key file, in octets.
const maxKeyFile = 4096

// ReadKey reads a KeyFile: at least 16 octets in hexadecimal, with white space
// anywhere.
func ReadKey(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("config: read key: %w", err)
	}
	defer f.Close()
	b := make([]byte, maxKeyFile+1)
	n, err := f.Read(b)
	if err != nil && n == 0 {
		return nil, fmt.Errorf("config: read key: %s: %w; make one with: openssl rand -hex 32", file, err)
	}
	if n > maxKeyFile {
		return nil, fmt.Errorf("config: read key: %s is longer than %d octets; is it a key file?", file, maxKeyFile)
	}
	key, err := hex.DecodeString(string(bytes.Join(bytes.Fields(b[:n]), nil)))
	if err != nil {
		return nil, fmt.Errorf("config: read key: %s: not hexadecimal; make one with: openssl rand -hex 32", file)
	}
	if len(key) < minKey {
		return nil, fmt.Errorf("config: read key: %s has %d octets, at least %d are needed; make one with: openssl rand -hex 32", file, len(key), minKey)
	}
	return key, nil
}
