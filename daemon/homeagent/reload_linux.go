package homeagent

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/mobility/homeagent"
)

// Reload takes over what may change while the home agent runs: the homes and their
// keys. The bindings of homes that are gone end, all others stay. Any other change
// is an error, and so is a key that cannot be read; then nothing changes.
func (r *Role) Reload(cfg config.HomeAgent) error {
	cfg = withDefaults(cfg)
	rest := r.cfg
	rest.Homes = cfg.Homes
	if !reflect.DeepEqual(rest, cfg) {
		return errors.New("homeagent: reload: more than homes has changed, which takes a restart; contacts register again then")
	}
	keys, err := credentials(cfg.Homes)
	if err == nil {
		// What New refuses, SetKeys would leave out.
		_, err = homeagent.New(machineConfig(&cfg, keys, r.start))
	}
	if err != nil {
		return fmt.Errorf("homeagent: reload: %w", err)
	}
	r.step(homeagent.SetKeys{Keys: keys}, r.send)

	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range r.homes {
		if _, ok := keys[a]; !ok {
			delete(r.homes, a)
			r.kernel.bind(a, netip.Addr{}, r.log)
			r.route(a, false)
		}
	}
	for a := range keys {
		if _, ok := r.homes[a]; !ok {
			r.homes[a] = home{}
			r.route(a, true)
		}
	}
	r.cfg.Homes = cfg.Homes
	r.events.Publish(api.Event{Kind: api.EventReloaded})
	return nil
}
