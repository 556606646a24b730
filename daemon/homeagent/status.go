package homeagent

import "github.com/distributed-servers/ds/mobility/wire"

// leaves reports whether a change that left no binding tells that the home
// address is not ours to speak for: the mobile node has said so, or somebody else
// has the address. After a refusal of any other kind there is no binding, but one
// is to be expected.
func leaves(status wire.Status) bool {
	return status == wire.Accepted || status == wire.DuplicateAddress
}
