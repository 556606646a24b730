package api

import "testing"

func TestAgreeSession(t *testing.T) {
	for offered, want := range map[string]string{
		"dsco-session/3": "dsco-session/3", "dsco-session/9, dsco-session/3": "dsco-session/3", " DSCO-Session/3 ": "dsco-session/3",
		"": "", "dsco-session/2": "", "websocket": "", "dsco-session/3x": "",
	} {
		if got, ok := AgreeSession(offered); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %t", offered, got, ok)
		}
	}
}
