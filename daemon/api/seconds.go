package api

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// Seconds is a duration. In JSON it is a number of seconds, which a script can
// compare.
type Seconds time.Duration

func (s Seconds) String() string { return time.Duration(s).String() }

// MarshalJSON implements [json.Marshaler].
func (s Seconds) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(s).Seconds()) }

// UnmarshalJSON implements [json.Unmarshaler].
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	const most = float64(math.MaxInt64) / float64(time.Second)
	if f >= most || f <= -most {
		return fmt.Errorf("api: %g seconds are more than a duration holds", f)
	}
	*s = Seconds(math.Round(f * float64(time.Second)))
	return nil
}
