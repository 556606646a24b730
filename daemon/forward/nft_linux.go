package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// table is a table of nftables that belongs to this process: nobody else can
// change it, and it goes when the process does, however that ends.
type table struct {
	name string

	mu   sync.Mutex
	conn *netlink.Conn
	err  error // for good: the table is gone
}

// tableOwner is NFT_TABLE_F_OWNER: the table goes with the socket that made it.
const tableOwner = 0x2

// commitTimeout bounds the kernel's answer, which takes microseconds.
const commitTimeout = 10 * time.Second

// openTable makes an empty table.
func openTable(name string) (*table, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("forward: open netlink: %w", err)
	}
	t := &table{name: name, conn: conn}
	err = t.commit(func(b *batch) {
		b.add(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, func(e *netlink.AttributeEncoder) {
			e.String(unix.NFTA_TABLE_NAME, name)
			e.Uint32(unix.NFTA_TABLE_FLAGS, tableOwner)
		})
	})
	if err != nil {
		return nil, err // commit has closed it
	}
	return t, nil
}

// close removes the table. A second call does nothing.
func (t *table) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil
	}
	t.err = ErrClosed
	return t.conn.Close()
}

// commit makes changes, all or none, which take effect at one instant. After an
// error there is no table any more: better none than one that is out of date.
func (t *table) commit(changes func(*batch)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return ErrClosed
	}
	b := batch{table: t.name}
	b.messages = append(b.messages, batchMark(unix.NFNL_MSG_BATCH_BEGIN))
	changes(&b)
	if b.err == nil && len(b.messages) == 1 {
		return nil
	}
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	b.messages = append(b.messages, batchMark(unix.NFNL_MSG_BATCH_END))
	err := b.err
	if err == nil {
		err = t.exchange(b.messages)
	}
	if err != nil {
		t.err = fmt.Errorf("forward: change table %s of nftables: %w", t.name, err)
		t.conn.Close()
	}
	return t.err
}

// exchange sends a batch and waits until the kernel has done it.
func (t *table) exchange(messages []netlink.Message) error {
	if err := t.conn.SetDeadline(time.Now().Add(commitTimeout)); err != nil {
		return err
	}
	sent, err := t.conn.SendMessages(messages)
	if err != nil {
		return err
	}
	// The only one that is acknowledged; errors come before.
	last := sent[len(sent)-2].Header.Sequence
	for {
		answers, err := t.conn.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Header.Sequence == last {
				return nil
			}
		}
	}
}

// counted returns how far a counter is. It asks by a socket of its own: whatever
// becomes of that, the table's is for changes.
func (t *table) counted(counter string) (c Count, err error) {
	t.mu.Lock()
	gone := t.err != nil
	t.mu.Unlock() // a change does not wait for whoever counts
	if gone {
		return c, ErrClosed
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("forward: counter %s of table %s of nftables: %w", counter, t.name, err)
		}
	}()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return c, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(commitTimeout)); err != nil {
		return c, err
	}
	b := batch{table: t.name}
	b.add(unix.NFT_MSG_GETOBJ, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_OBJ_TABLE, t.name)
		e.String(unix.NFTA_OBJ_NAME, counter)
		e.Uint32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	})
	if b.err != nil {
		return c, b.err
	}
	answers, err := conn.Execute(b.messages[0])
	if err != nil {
		return c, err
	}
	for _, a := range answers {
		if c, err = parseCounter(a.Data); err != nil {
			return Count{}, err
		}
	}
	return c, nil
}

// parseCounter reads the kernel's description of a counter.
func parseCounter(b []byte) (c Count, err error) {
	d, err := netlink.NewAttributeDecoder(b[min(len(b), len(genmsg(0, 0))):])
	if err != nil {
		return c, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		if d.Type() != unix.NFTA_OBJ_DATA {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				switch d.Type() {
				case unix.NFTA_COUNTER_PACKETS:
					c.Packets = d.Uint64()
				case unix.NFTA_COUNTER_BYTES:
					c.Octets = d.Uint64()
				}
			}
			return nil
		})
	}
	return c, d.Err()
}

// batch collects changes of a table.
type batch struct {
	table    string
	messages []netlink.Message
	err      error
}

// genmsg is struct nfgenmsg: the family, version 0, a number.
func genmsg(family uint8, number uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, 0}, number)
}

func batchMark(kind uint16) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
		Data:   genmsg(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES),
	}
}

// add adds a message.
func (b *batch) add(kind uint16, flags netlink.HeaderFlags, attributes func(*netlink.AttributeEncoder)) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	attributes(e)
	data, err := e.Encode()
	b.err = errors.Join(b.err, err)
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append(genmsg(unix.NFPROTO_IPV6, 0), data...),
	})
}

// chain adds one that all packets pass that arrive.
func (b *batch) chain(name string, priority int32) {
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create|netlink.Excl, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, b.table)
		e.String(unix.NFTA_CHAIN_NAME, name)
		nested(e, unix.NFTA_CHAIN_HOOK, func(e *netlink.AttributeEncoder) {
			e.Uint32(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING)
			e.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(priority))
		})
		e.String(unix.NFTA_CHAIN_TYPE, "filter")
	})
}

// set adds a set of keys of some length; a map, if values have one.
func (b *batch) set(name string, key, value int) {
	b.add(unix.NFT_MSG_NEWSET, netlink.Create|netlink.Excl, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_SET_TABLE, b.table)
		e.String(unix.NFTA_SET_NAME, name)
		flags := uint32(0)
		if value > 0 {
			flags = unix.NFT_SET_MAP
		}
		e.Uint32(unix.NFTA_SET_FLAGS, flags)
		// The types are for those who list it; what they do not know they show
		// as numbers.
		e.Uint32(unix.NFTA_SET_KEY_TYPE, dataType(key))
		e.Uint32(unix.NFTA_SET_KEY_LEN, uint32(key))
		if value > 0 {
			e.Uint32(unix.NFTA_SET_DATA_TYPE, dataType(value))
			e.Uint32(unix.NFTA_SET_DATA_LEN, uint32(value))
		}
		e.Uint32(unix.NFTA_SET_ID, uint32(len(b.messages)))
	})
}

// dataType is the number that the program nft has for data of a length.
func dataType(length int) uint32 {
	const integer, address, bitsOfType = 4, 8, 6
	switch length {
	case 16:
		return address
	case 32: // a concatenation
		return address<<bitsOfType | address
	}
	return integer
}

// element is one of a set; of a map, with a value.
type element struct{ key, value []byte }

// maxElements is how many elements a message has at most: attributes are shorter
// than 64 KiB.
const maxElements = 256

// insert adds elements; remove removes them. All must be new, or there.
func (b *batch) insert(set string, elements ...element) {
	b.elements(unix.NFT_MSG_NEWSETELEM, netlink.Create|netlink.Excl, set, elements)
}

func (b *batch) remove(set string, elements ...element) {
	b.elements(unix.NFT_MSG_DELSETELEM, 0, set, elements)
}

func (b *batch) elements(kind uint16, flags netlink.HeaderFlags, set string, elements []element) {
	for len(elements) > 0 {
		some := elements[:min(len(elements), maxElements)]
		elements = elements[len(some):]
		b.add(kind, flags, func(e *netlink.AttributeEncoder) {
			e.String(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
			e.String(unix.NFTA_SET_ELEM_LIST_SET, set)
			nested(e, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(e *netlink.AttributeEncoder) {
				for _, x := range some {
					nested(e, unix.NFTA_LIST_ELEM, func(e *netlink.AttributeEncoder) {
						value(e, unix.NFTA_SET_ELEM_KEY, x.key)
						if x.value != nil {
							value(e, unix.NFTA_SET_ELEM_DATA, x.value)
						}
					})
				}
			})
		})
	}
}

// clear removes all elements of a set.
func (b *batch) clear(set string) {
	b.add(unix.NFT_MSG_DELSETELEM, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
		e.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	})
}

// counter adds one for rules to count with.
func (b *batch) counter(name string) {
	b.add(unix.NFT_MSG_NEWOBJ, netlink.Create|netlink.Excl, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_OBJ_TABLE, b.table)
		e.String(unix.NFTA_OBJ_NAME, name)
		e.Uint32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
		nested(e, unix.NFTA_OBJ_DATA, func(*netlink.AttributeEncoder) {})
	})
}

// rule adds a rule to the end of a chain.
func (b *batch) rule(chain string, expressions ...expression) {
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, b.table)
		e.String(unix.NFTA_RULE_CHAIN, chain)
		nested(e, unix.NFTA_RULE_EXPRESSIONS, func(e *netlink.AttributeEncoder) {
			for _, x := range expressions {
				nested(e, unix.NFTA_LIST_ELEM, func(e *netlink.AttributeEncoder) {
					e.String(unix.NFTA_EXPR_NAME, x.name)
					nested(e, unix.NFTA_EXPR_DATA, x.attributes)
				})
			}
		})
	})
}

func nested(e *netlink.AttributeEncoder, kind uint16, f func(*netlink.AttributeEncoder)) {
	e.Nested(kind, func(e *netlink.AttributeEncoder) error {
		f(e)
		return nil
	})
}

// value is data of a set or of an expression.
func value(e *netlink.AttributeEncoder, kind uint16, b []byte) {
	nested(e, kind, func(e *netlink.AttributeEncoder) { e.Bytes(unix.NFTA_DATA_VALUE, b) })
}
