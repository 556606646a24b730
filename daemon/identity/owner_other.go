//go:build !unix

package identity

import "os"

// likeDir does nothing where owners are not numbers.
func likeDir(*os.File, string) error { return nil }

// lock does nothing: no daemon runs here.
func lock(string) (func(), error) { return func() {}, nil }
