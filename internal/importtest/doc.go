// Package importtest holds the arrows between the packages of this module: who
// may import whom, and why not. It has no code but its test, which reads the
// imports of every non-test Go file of the module, for every platform, and
// reports each one that breaks a rule together with the rule's reason.
//
// A new arrow is a decision: change the table in the same commit, and say why.
//
// Another test reads the machines, and finds clocks, goroutines and the like in them.
package importtest
