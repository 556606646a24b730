package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/identity"
)

func TestMayRemove(t *testing.T) {
	socket, _ := daemon(t, &fake{servers: 1, nodes: []api.NodeInfo{
		{Node: "a", Contact: true, Connected: true},
		{Node: "b", Connected: true},
		{Node: "c", Connected: true, Clients: 3},
		{Node: "d"},
	}})
	for _, tt := range []struct{ socket, name, want, forced string }{
		{socket, "a", "it is the contact of 2001:db8:1::80; let another", "it is the contact of 2001:db8:1::80; let another"},
		{socket, "b", "", ""},
		{socket, "c", "it has clients of 2001:db8:1::80: 3; drain it first (ds drain c), or --force", ""},
		{socket, "d", "it is not connected, and may have clients", ""},
		{"/nowhere", "b", "--force does without", ""},
	} {
		for force, want := range map[bool]string{false: tt.want, true: tt.forced} {
			err := mayRemove(t.Context(), &api.Client{Socket: tt.socket}, tt.name, force)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s, force %t: %v, want %q", tt.name, force, err, want)
			}
		}
	}
}

func TestRemoveMistakes(t *testing.T) {
	dir := t.TempDir()
	if _, err := cluster(t, dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "etc", "dsco.toml")
	if _, err := ds(t, "remove", "z", "--config", file); err == nil || !strings.Contains(err.Error(), "there is no node z; there are a") {
		t.Error(err)
	}
	if _, err := ds(t, "remove", "a", "--force", "--config", file); err == nil || !strings.Contains(err.Error(), "the authority of the cluster is on a") {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "state", "cluster", identity.AuthorityFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := ds(t, "remove", "z", "--config", file); err == nil || !strings.Contains(err.Error(), "run this where ds init was run") {
		t.Error(err)
	}
}
