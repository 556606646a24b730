// Package killpoint has points at which a program can be made to end as kill -9
// ends it: where a message is sent or has come, where something is written. The
// end-to-end tests choose one, and so reach every stage of a handoff.
//
// That is only so in programs that are built for it, with the tag killpoint. Where
// the environment of one names a directory ([Env]), a file there whose name is the
// process's number says what is to happen, a point a line:
//
//	kill peer send transfer
//	stop session received offer
//
// To stop is SIGSTOP; SIGCONT lets it go on. In all other programs Here is nothing, not even a call.
package killpoint

// Env names the directory.
const Env = "DS_KILLPOINTS"
