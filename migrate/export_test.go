package migrate

// SetStopped has f called when a freeze has stopped the connections that it has found, until
// the function that is returned is called.
func SetStopped(f func()) (undo func()) {
	before := stopped
	stopped = f
	return func() { stopped = before }
}
