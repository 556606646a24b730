package api

import "testing"

func TestAgreeSession(t *testing.T) {
	for offered, want := range map[string]string{
		"dsco-session/2": "dsco-session/2", "dsco-session/9, dsco-session/2": "dsco-session/2", " DSCO-Session/2 ": "dsco-session/2",
		"": "", "dsco-session/1": "", "websocket": "", "dsco-session/2x": "",
	} {
		if got, ok := AgreeSession(offered); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %t", offered, got, ok)
		}
	}
}
