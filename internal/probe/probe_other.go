//go:build !linux

package probe

import "runtime"

// Main does nothing on this system.
func Main() {}

func run() []Result {
	results := make([]Result, len(Names))
	for i, name := range Names {
		results[i] = Result{Name: name, Detail: "not on " + runtime.GOOS, Cure: "use Linux"}
	}
	return results
}
