package kernelro

import "github.com/cilium/ebpf"

// Programs loads those for Ethernet's frames that do not lead to other interfaces.
func (k *Kernel) Programs() (out, in *ebpf.Program, err error) {
	if out, err = load(egress(k.tables, 14)); err != nil {
		return nil, nil, err
	}
	in, err = load(ingress(k.tables, 14, 0))
	return out, in, err
}
