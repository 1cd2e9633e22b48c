// Disks of simulated machines: flat bases, COWD deltas, and what changed in which epoch.
package main

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/google/uuid"
)

const (
	sector    = 512
	tableLen  = 4096 // entries of a COWD grain table
	tableSize = tableLen * 4
)

// layer is the flat base, or a COWD delta with grains of one sector.
type layer struct {
	name   string // of the descriptor
	file   *os.File
	delta  bool
	free   int64 // next free sector
	tables map[int64][]uint32
	places map[int64]int64 // where each table lies
}

// disk is one virtual disk with its chain of layers, the base first.
type disk struct {
	folder   string
	stem     string
	capacity int64
	tracking string // the tracking's id; empty while nothing is tracked
	barred   bool   // never tracked, whatever the machine's config says
	apart    bool   // no snapshot holds it
	kind     string // of its backing, as clients see it; empty for a flat file

	compatibility string // of a raw device
	block         int64
	epoch         int64
	dirty         map[int64]map[int64]bool // by epoch, the numbers of blocks
	layers        []*layer
	number        int
	uuid          string
}

func newDisk(folder, stem string, capacity, block int64) (*disk, error) {
	d := &disk{
		folder: folder, stem: stem, capacity: capacity, block: block, epoch: 1,
		dirty: map[int64]map[int64]bool{}, uuid: uuid.New().String(),
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(folder, stem+"-flat.vmdk"))
	if err != nil {
		return nil, err
	}
	base := &layer{name: stem + ".vmdk", file: file}
	d.layers = []*layer{base}
	return d, d.grow(capacity)
}

// grow sets the size; what was written stays.
func (d *disk) grow(capacity int64) error {
	d.capacity = capacity
	if err := d.layers[0].file.Truncate(capacity); err != nil {
		return err
	}
	text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n" +
		fmt.Sprintf("RW %d VMFS \"%s-flat.vmdk\"\n\n", (capacity+sector-1)/sector, d.stem) +
		"ddb.adapterType = \"lsilogic\"\nddb.virtualHWVersion = \"19\"\n"
	return os.WriteFile(filepath.Join(d.folder, d.stem+".vmdk"), []byte(text), 0o600)
}

func (d *disk) top() *layer { return d.layers[len(d.layers)-1] }

// changeID names the present moment of the tracking; empty where there is none.
func (d *disk) changeID(epoch int64) string {
	if d.tracking == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d", d.tracking, epoch)
}

// newTracking returns an id as VMware writes it: "52 de c0 ... 9d 10-61 d5 ...".
func newTracking() string {
	raw := uuid.New()
	words := make([]string, 16)
	for i, b := range raw {
		words[i] = fmt.Sprintf("%02x", b)
	}
	return strings.Join(words[:8], " ") + "-" + strings.Join(words[8:], " ")
}

// freeze lets later writes go into a new delta; returns the name of the frozen layer.
func (d *disk) freeze() (string, error) {
	frozen := d.top().name
	d.number++
	name := fmt.Sprintf("%s-%06d.vmdk", d.stem, d.number)
	extent := fmt.Sprintf("%s-%06d-delta.vmdk", d.stem, d.number)
	file, err := os.Create(filepath.Join(d.folder, extent))
	if err != nil {
		return "", err
	}
	sectors := (d.capacity + sector - 1) / sector
	entries := (sectors + tableLen - 1) / tableLen
	head := make([]byte, 4*sector)
	copy(head, "COWD")
	for i, value := range []int64{1, 3, sectors, 1, 4, entries} {
		binary.LittleEndian.PutUint32(head[4+4*i:], uint32(value))
	}
	free := 4 + (entries*4+sector-1)/sector
	binary.LittleEndian.PutUint32(head[28:], uint32(free))
	if _, err := file.WriteAt(head, 0); err != nil {
		return "", err
	}
	if err := file.Truncate(free * sector); err != nil {
		return "", err
	}
	text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=fffffffe\ncreateType=\"vmfsSparse\"\n" +
		fmt.Sprintf("parentFileNameHint=\"%s\"\n\nRW %d VMFSSPARSE \"%s\"\n", frozen, sectors, extent)
	if err := os.WriteFile(filepath.Join(d.folder, name), []byte(text), 0o600); err != nil {
		return "", err
	}
	d.layers = append(d.layers, &layer{
		name: name, file: file, delta: true, free: free,
		tables: map[int64][]uint32{}, places: map[int64]int64{},
	})
	return frozen, nil
}

// merge puts the layer above `frozen` into it; returns the names of what is gone and what stayed.
func (d *disk) merge(frozen string) (string, string, error) {
	for i, below := range d.layers[:len(d.layers)-1] {
		if below.name != frozen {
			continue
		}
		above := d.layers[i+1]
		buffer := make([]byte, sector)
		for number, table := range above.tables {
			for index, place := range table {
				if place == 0 {
					continue
				}
				if _, err := above.file.ReadAt(buffer, int64(place)*sector); err != nil {
					return "", "", err
				}
				offset := (number*tableLen + int64(index)) * sector
				if err := below.write(offset, buffer[:min64(sector, d.capacity-offset)]); err != nil {
					return "", "", err
				}
			}
		}
		above.file.Close()
		os.Remove(above.file.Name())
		os.Remove(filepath.Join(d.folder, above.name))
		d.layers = append(d.layers[:i+1], d.layers[i+2:]...)
		// The layer above the merged one, if there is one, now has another parent.
		if i+1 < len(d.layers) {
			path := filepath.Join(d.folder, d.layers[i+1].name)
			text, err := os.ReadFile(path)
			if err != nil {
				return "", "", err
			}
			text = []byte(strings.ReplaceAll(string(text), above.name, below.name))
			if err := os.WriteFile(path, text, 0o600); err != nil {
				return "", "", err
			}
		}
		return above.name, below.name, nil
	}
	return "", "", fmt.Errorf("no layer above %s", frozen)
}

// write is a write of the guest: into the top layer, and into the map of what changed.
func (d *disk) write(offset int64, data []byte) error {
	if offset < 0 || offset+int64(len(data)) > d.capacity {
		return fmt.Errorf("a write of %d bytes at %d is outside the disk", len(data), offset)
	}
	if d.tracking != "" && len(data) > 0 {
		blocks := d.dirty[d.epoch]
		if blocks == nil {
			blocks = map[int64]bool{}
			d.dirty[d.epoch] = blocks
		}
		for n := offset / d.block; n <= (offset+int64(len(data))-1)/d.block; n++ {
			blocks[n] = true
		}
	}
	top := d.top()
	if !top.delta {
		_, err := top.file.WriteAt(data, offset)
		return err
	}
	// Whole grains, so what is around the written bytes comes from below.
	start := offset / sector * sector
	end := min64((offset+int64(len(data))+sector-1)/sector*sector, (d.capacity+sector-1)/sector*sector)
	whole := make([]byte, end-start)
	if err := d.read(whole, start); err != nil {
		return err
	}
	copy(whole[offset-start:], data)
	return top.write(start, whole)
}

// write puts whole grains into a delta, or bytes into a flat file.
func (l *layer) write(offset int64, data []byte) error {
	if !l.delta {
		_, err := l.file.WriteAt(data, offset)
		return err
	}
	touched := map[int64]bool{}
	for at := 0; at < len(data); at += sector {
		grain := (offset + int64(at)) / sector
		number, index := grain/tableLen, grain%tableLen
		table := l.tables[number]
		if table == nil {
			table = make([]uint32, tableLen)
			l.tables[number] = table
			l.places[number] = l.free
			l.free += tableSize / sector
			entry := make([]byte, 4)
			binary.LittleEndian.PutUint32(entry, uint32(l.places[number]))
			if _, err := l.file.WriteAt(entry, 4*sector+4*number); err != nil {
				return err
			}
		}
		if table[index] == 0 {
			table[index] = uint32(l.free)
			l.free++
			touched[number] = true
		}
		grainBytes := make([]byte, sector)
		copy(grainBytes, data[at:])
		if _, err := l.file.WriteAt(grainBytes, int64(table[index])*sector); err != nil {
			return err
		}
	}
	for number := range touched {
		raw := make([]byte, tableSize)
		for i, place := range l.tables[number] {
			binary.LittleEndian.PutUint32(raw[4*i:], place)
		}
		if _, err := l.file.WriteAt(raw, l.places[number]*sector); err != nil {
			return err
		}
	}
	free := make([]byte, 4)
	binary.LittleEndian.PutUint32(free, uint32(l.free))
	_, err := l.file.WriteAt(free, 28)
	return err
}

// read fills the buffer from the newest layer that has each grain; past the end with zeros.
func (d *disk) read(buffer []byte, offset int64) error {
	return d.readBelow(buffer, offset, len(d.layers))
}

func (d *disk) readBelow(buffer []byte, offset int64, layers int) error {
	length := min64(int64(len(buffer)), d.capacity-offset)
	if _, err := d.layers[0].file.ReadAt(buffer[:length], offset); err != nil {
		return err
	}
	for _, l := range d.layers[1:layers] {
		for at := int64(0); at < int64(len(buffer)); at += sector {
			grain := (offset + at) / sector
			table := l.tables[grain/tableLen]
			if table == nil || table[grain%tableLen] == 0 {
				continue
			}
			end := min64(at+sector, int64(len(buffer)))
			if _, err := l.file.ReadAt(buffer[at:end], int64(table[grain%tableLen])*sector); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep writes what the disk holds now into a file: what a test compares with.
func (d *disk) keep(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(d.capacity); err != nil {
		return err
	}
	buffer := make([]byte, 1<<20)
	for offset := int64(0); offset < d.capacity; offset += int64(len(buffer)) {
		part := buffer[:min64(int64(len(buffer)), d.capacity-offset)]
		if err := d.read(part, offset); err != nil {
			return err
		}
		if !isZero(part) {
			if _, err := file.WriteAt(part, offset); err != nil {
				return err
			}
		}
	}
	return nil
}

// scribble is a guest that writes a little, somewhere.
func (d *disk) scribble(random *rand.Rand) error {
	for i := 0; i < 4; i++ {
		length := 1 + random.Int63n(3*sector)
		data := make([]byte, min64(length, d.capacity))
		random.Read(data)
		if err := d.write(random.Int63n(d.capacity-int64(len(data))+1), data); err != nil {
			return err
		}
	}
	return nil
}

type area struct{ start, length int64 }

// changed returns what changed in the epochs after `from` and up to `to`, merged and in order.
func (d *disk) changed(from, to int64) []area {
	blocks := map[int64]bool{}
	for epoch := from + 1; epoch <= to; epoch++ {
		for n := range d.dirty[epoch] {
			blocks[n] = true
		}
	}
	return d.areas(blocks)
}

// allocated returns the blocks that are not zeros.
func (d *disk) allocated(layers int) []area {
	blocks := map[int64]bool{}
	buffer := make([]byte, d.block)
	for n := int64(0); n*d.block < d.capacity; n++ {
		part := buffer[:min64(d.block, d.capacity-n*d.block)]
		if d.readBelow(part, n*d.block, layers) == nil && !isZero(part) {
			blocks[n] = true
		}
	}
	return d.areas(blocks)
}

func (d *disk) areas(blocks map[int64]bool) []area {
	numbers := make([]int64, 0, len(blocks))
	for n := range blocks {
		numbers = append(numbers, n)
	}
	sort.Slice(numbers, func(i, j int) bool { return numbers[i] < numbers[j] })
	var found []area
	for _, n := range numbers {
		start, end := n*d.block, min64((n+1)*d.block, d.capacity)
		if last := len(found) - 1; last >= 0 && found[last].start+found[last].length == start {
			found[last].length += end - start
			continue
		}
		found = append(found, area{start, end - start})
	}
	return found
}

func isZero(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

func min64(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}
