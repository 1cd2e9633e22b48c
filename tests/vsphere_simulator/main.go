// A vCenter or ESXi for tests: govmomi's simulator, with change tracking, delta disks, sessions
// that expire, and faults on demand. Control calls are POSTs to /control/NAME.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type fault struct {
	after int // how often it does not happen yet
	left  int
	value string
}

type frozenDisk struct {
	layer string
	epoch int64
	count int // how many layers were below and including it
}

type snapshot struct {
	vm     types.ManagedObjectReference
	frozen map[int32]frozenDisk
}

type sim struct {
	mu        sync.Mutex
	service   *simulator.Service
	user      string
	password  string
	maxAreas  int
	keepIn    string
	cookies   map[string]bool
	faults    map[string]*fault
	disks     map[types.ManagedObjectReference]map[int32]*disk
	snapshots map[types.ManagedObjectReference]*snapshot
	busy      map[*disk]*rand.Rand
	plain     map[types.BaseVirtualDeviceBackingInfo]*flat
	calls     map[string]int
	reads     int
	bytes     int64
	expireIn  int
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	esx := flag.Bool("esx", false, "a single host in place of a vCenter")
	maxAreas := flag.Int("max-areas", 2000, "most areas in one answer")
	cert := flag.String("cert", "", "file")
	key := flag.String("key", "", "file")
	user := flag.String("user", "administrator@vsphere.local", "")
	keepIn := flag.String("keep", "", "folder for what disks held as a snapshot was made")
	flag.Parse()
	// Not an argument: a test looks for it in everybody's.
	password := os.Getenv("SIMULATOR_PASSWORD")
	log.SetOutput(io.Discard)

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Autostart = true
	check(model.Create())
	defer model.Remove()
	s := &sim{
		service: model.Service, user: *user, password: password, maxAreas: *maxAreas, keepIn: *keepIn,
		cookies: map[string]bool{}, faults: map[string]*fault{}, calls: map[string]int{},
		disks:     map[types.ManagedObjectReference]map[int32]*disk{},
		snapshots: map[types.ManagedObjectReference]*snapshot{}, busy: map[*disk]*rand.Rand{},
		plain: map[types.BaseVirtualDeviceBackingInfo]*flat{},
	}
	simulator.Map.AddHandler(s)
	// It makes Login check them; NewServer registers the handlers that we pass requests on to.
	model.Service.Listen = &url.URL{User: url.UserPassword(*user, password)}
	inner := model.Service.NewServer()
	defer inner.Close()

	pair, err := tls.LoadX509KeyPair(*cert, *key)
	check(err)
	listener, err := net.Listen("tcp", *listen)
	check(err)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	server := &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0)}
	fmt.Printf("listening %s\n", listener.Addr())
	go func() { _ = server.Serve(tls.NewListener(listener, config)) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// The registry's hook: what vcsim itself does not do to disks when snapshots come and go.

func (s *sim) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Hook", Value: "disks"}
}

func (s *sim) UpdateObject(mo.Reference, []types.PropertyChange) {}

func (s *sim) PutObject(item mo.Reference) {
	switch made := item.(type) {
	case *simulator.Task:
		if made.Info.Entity != nil && made.Info.Entity.Type == "VirtualMachineSnapshot" {
			// pyvmomi refuses an entity of this type (fixed in later versions of vcsim).
			if found, ok := simulator.Map.Get(*made.Info.Entity).(*simulator.VirtualMachineSnapshot); ok {
				vm := found.Vm
				made.Info.Entity = &vm
			}
		}
	case *simulator.VirtualMachineSnapshot:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.freeze(made)
	}
}

func (s *sim) RemoveObject(ref types.ManagedObjectReference) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.snapshots[ref]
	if gone == nil {
		return
	}
	delete(s.snapshots, ref)
	vm := simulator.Map.Get(gone.vm).(*simulator.VirtualMachine)
	for key, frozen := range gone.frozen {
		d := s.disks[gone.vm][key]
		merged, stays, err := d.merge(frozen.layer)
		if err != nil {
			continue
		}
		for other, each := range s.snapshots {
			if each.vm != gone.vm {
				continue
			}
			if f := each.frozen[key]; f.layer == merged {
				f.layer, f.count = stays, f.count-1
				each.frozen[key] = f
				if found, ok := simulator.Map.Get(other).(*simulator.VirtualMachineSnapshot); ok {
					found.Config.Hardware.Device = renamed(found.Config.Hardware.Device, key, merged, stays)
				}
			}
		}
		vm.Config.Hardware.Device = renamed(vm.Config.Hardware.Device, key, merged, stays)
	}
}

// renamed returns the devices with one disk's file name changed; shared objects stay as they are.
func renamed(devices []types.BaseVirtualDevice, key int32, from, to string) []types.BaseVirtualDevice {
	found := make([]types.BaseVirtualDevice, len(devices))
	copy(found, devices)
	for i, device := range devices {
		d, ok := device.(*types.VirtualDisk)
		if !ok || d.Key != key {
			continue
		}
		backing, ok := d.Backing.(*flat)
		if ok && strings.HasSuffix(backing.FileName, "/"+from) {
			next, copied := *backing, *d
			next.FileName = strings.TrimSuffix(backing.FileName, from) + to
			if next.Parent != nil && strings.HasSuffix(next.Parent.FileName, "/"+to) {
				next.Parent = next.Parent.Parent
			}
			copied.Backing = &next
			found[i] = &copied
		}
	}
	return found
}

// freeze gives a new snapshot the disks as they are, and the machine a delta for each.
func (s *sim) freeze(made *simulator.VirtualMachineSnapshot) {
	vm := simulator.Map.Get(made.Vm).(*simulator.VirtualMachine)
	kept := &snapshot{made.Vm, map[int32]frozenDisk{}}
	var theirs, ours []types.BaseVirtualDevice
	for _, device := range vm.Config.Hardware.Device {
		old, ok := device.(*types.VirtualDisk)
		d := s.disks[made.Vm][device.GetVirtualDevice().Key]
		if !ok || d == nil {
			theirs, ours = append(theirs, device), append(ours, device)
			continue
		}
		backing := old.Backing.(*flat)
		if d.apart {
			theirs, ours = append(theirs, device), append(ours, device)
			continue
		}
		id := d.changeID(d.epoch)
		if s.keepIn != "" {
			check(d.keep(filepath.Join(s.keepIn, fmt.Sprintf("%s-%d.raw", vm.Name, old.Key))))
		}
		frozen, err := d.freeze()
		check(err)
		kept.frozen[old.Key] = frozenDisk{frozen, d.epoch, len(d.layers) - 1}
		d.epoch++
		// Tracking begins, or ends, when a machine is stunned, and not before.
		wanted := vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled && !d.barred
		if wanted && d.tracking == "" {
			d.tracking = newTracking()
			setOption(vm, ctk(old.Key), "TRUE")
		} else if !wanted {
			d.tracking = ""
		}
		frozenBacking, newBacking := *backing, *backing
		frozenBacking.ChangeId, newBacking.ChangeId = id, d.changeID(d.epoch)
		newBacking.FileName = strings.TrimSuffix(backing.FileName, frozen) + d.top().name
		newBacking.Parent = &frozenBacking
		frozenDevice, newDevice := *old, *old
		frozenDevice.Backing, newDevice.Backing = &frozenBacking, &newBacking
		theirs, ours = append(theirs, &frozenDevice), append(ours, &newDevice)
	}
	made.Config.Hardware.Device = theirs
	vm.Config.Hardware.Device = ours
	s.snapshots[made.Self] = kept
}

// The front: what clients know.

type cookieCollector struct {
	http.ResponseWriter
	s *sim
}

func (c *cookieCollector) WriteHeader(status int) {
	for _, line := range c.Header().Values("Set-Cookie") {
		request := http.Request{Header: http.Header{"Cookie": {strings.SplitN(line, ";", 2)[0]}}}
		if cookie, err := request.Cookie("vmware_soap_session"); err == nil {
			c.s.mu.Lock()
			c.s.cookies[cookie.Value] = true
			c.s.mu.Unlock()
		}
	}
	c.ResponseWriter.WriteHeader(status)
}

func (s *sim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/control/"):
		s.control(w, r)
	case strings.HasPrefix(r.URL.Path, "/folder"):
		s.folder(w, r)
	case strings.HasPrefix(r.URL.Path, "/sdk") && r.Method == http.MethodPost:
		s.sdk(w, r)
	default:
		s.service.ServeMux.ServeHTTP(w, r)
	}
}

func (s *sim) isKnown(r *http.Request) bool {
	cookie, err := r.Cookie("vmware_soap_session")
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cookies[cookie.Value]
}

// take uses up one occurrence of an armed fault.
func (s *sim) take(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults[name]
	if f == nil || f.left == 0 {
		return "", false
	}
	if f.after > 0 {
		f.after--
		return "", false
	}
	f.left--
	return f.value, true
}

func (s *sim) sdk(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	known := s.isKnown(r)
	if !known {
		r.Header.Del("Cookie") // or Login would say that there is a session already
	}
	method, err := simulator.UnmarshalBody(types.TypeFunc(), body)
	if err != nil {
		// One that vcsim has no type for; its own handler says so.
		method = &simulator.Method{Name: "?"}
		if bytes.Contains(body, []byte("<Fetch ")) {
			method.Name = "Fetch"
		}
	}
	s.mu.Lock()
	s.calls[method.Name]++
	s.mu.Unlock()
	switch method.Name {
	case "RetrieveServiceContent", "Login", "Fetch", "?":
	default:
		if !known {
			soapFault(w, "The session is not authenticated.", "NotAuthenticated",
				fmt.Sprintf(`<object type="%s">%s</object><privilegeId>System.View</privilegeId>`,
					method.This.Type, method.This.Value))
			return
		}
	}
	if bytes.Contains(body, []byte("layoutEx")) {
		s.layOut()
	}
	if value, ok := s.take("drop:" + method.Name); ok && value == "" {
		drop(w)
		return
	}
	if _, ok := s.take("html:" + method.Name); ok {
		http.Error(w, "<html><p>busy", http.StatusInternalServerError)
		return
	}
	switch request := method.Body.(type) {
	case *types.QueryChangedDiskAreas:
		s.query(w, request)
		return
	case *types.CreateSnapshot_Task:
		if value, ok := s.take("create"); ok {
			s.failed(w, "CreateSnapshot_Task", request.This, value)
			return
		}
		if request.Quiesce {
			if value, ok := s.take("quiesce"); ok {
				s.failed(w, "CreateSnapshot_Task", request.This, value)
				return
			}
		}
	case *types.RemoveSnapshot_Task:
		if value, ok := s.take("remove"); ok {
			s.failed(w, "RemoveSnapshot_Task", request.This, value)
			return
		}
		if _, ok := s.take("consolidate"); ok {
			if found, ok := simulator.Map.Get(request.This).(*simulator.VirtualMachineSnapshot); ok {
				needed := true
				simulator.Map.Get(found.Vm).(*simulator.VirtualMachine).Runtime.ConsolidationNeeded = &needed
			}
		}
	case *types.ReconfigVM_Task:
		if value, ok := s.take("reconfigure"); ok {
			s.failed(w, "ReconfigVM_Task", request.This, value)
			return
		}
	case *types.ConsolidateVMDisks_Task:
		if value, ok := s.take("consolidating"); ok {
			s.failed(w, "ConsolidateVMDisks_Task", request.This, value)
			return
		}
		vm := simulator.Map.Get(request.This).(*simulator.VirtualMachine)
		needed := false
		vm.Runtime.ConsolidationNeeded = &needed
		task := simulator.CreateTask(vm, "consolidateVMDisks",
			func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, nil })
		taskAnswer(w, "ConsolidateVMDisks_Task", task.Run())
		return
	}
	switch method.Name {
	case "CreateSnapshot_Task", "RemoveSnapshot_Task", "ReconfigVM_Task":
		if vm := machineOf(method.This); vm != nil {
			s.mu.Lock()
			s.hide(vm)
			s.mu.Unlock()
			defer func() {
				s.mu.Lock()
				s.show(vm)
				s.mu.Unlock()
			}()
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if _, ok := s.take("lost:" + method.Name); ok {
		s.service.ServeMux.ServeHTTP(&nowhere{http.Header{}}, r)
		drop(w)
		return
	}
	defer func() {
		if failed := recover(); failed != nil {
			if method.Name != "Fetch" {
				panic(failed)
			}
			// vcsim indexes an empty MissingSet; a real server says that the property is unset.
			answer(w, http.StatusOK, `<FetchResponse xmlns="urn:vim25"></FetchResponse>`)
		}
	}()
	s.service.ServeMux.ServeHTTP(&cookieCollector{w, s}, r)
}

type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header            { return n.header }
func (n *nowhere) Write(data []byte) (int, error) { return len(data), nil }
func (n *nowhere) WriteHeader(int)                {}

// drop ends the connection without an answer.
func drop(w http.ResponseWriter) {
	if connection, _, err := w.(http.Hijacker).Hijack(); err == nil {
		connection.Close()
	}
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>%s</soapenv:Body></soapenv:Envelope>`, body)
}

func soapFault(w http.ResponseWriter, text, kind, detail string) {
	answer(w, http.StatusInternalServerError, fmt.Sprintf(
		`<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail><%sFault xmlns="urn:vim25" xsi:type="%s">%s</%sFault></detail></soapenv:Fault>`,
		html.EscapeString(text), kind, kind, detail, kind))
}

func taskAnswer(w http.ResponseWriter, method string, task types.ManagedObjectReference) {
	answer(w, http.StatusOK, fmt.Sprintf(
		`<%sResponse xmlns="urn:vim25"><returnval type="Task">%s</returnval></%sResponse>`,
		method, task.Value, method))
}

// failed answers with a task that ends with a fault or, after `now:`, with the fault itself.
func (s *sim) failed(w http.ResponseWriter, method string, on types.ManagedObjectReference, kind string) {
	item := simulator.Map.Get(on)
	kind, now := strings.TrimPrefix(kind, "now:"), strings.HasPrefix(kind, "now:")
	other := types.ManagedObjectReference{}
	if kind == "TaskInProgress" {
		// It is queued, and never runs.
		other = simulator.CreateTask(machineOf(on), "migrate", nil).Self
	}
	if now {
		soapFault(w, "The operation is not allowed now.", kind,
			fmt.Sprintf(`<task type="Task">%s</task>`, other.Value))
		return
	}
	task := simulator.CreateTask(item, method, func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		switch kind {
		case "ApplicationQuiesceFault":
			return nil, &types.ApplicationQuiesceFault{}
		case "FilesystemQuiesceFault":
			return nil, &types.FilesystemQuiesceFault{}
		case "TaskInProgress":
			return nil, &types.TaskInProgress{Task: other}
		case "FileLocked":
			return nil, &types.FileLocked{FileFault: types.FileFault{File: "[LocalDS_0] mail/mail.vmdk"}}
		case "MultipleSnapshotsNotSupported":
			return nil, &types.MultipleSnapshotsNotSupported{}
		}
		return nil, &types.GenericVmConfigFault{Reason: kind}
	})
	taskAnswer(w, method, task.Run())
}

func (s *sim) query(w http.ResponseWriter, q *types.QueryChangedDiskAreas) {
	fileFault := func(key, file string) {
		text := "Error caused by file " + file
		message := ""
		if key != "" {
			message = "<faultMessage><key>" + key + "</key></faultMessage>"
		}
		soapFault(w, text, "FileFault", message+"<file>"+html.EscapeString(file)+"</file>")
	}
	invalid := func(property string) {
		soapFault(w, "A specified parameter was not correct: "+property, "InvalidArgument",
			"<invalidProperty>"+property+"</invalidProperty>")
	}
	notFound := func(ref types.ManagedObjectReference) {
		soapFault(w, "The object has already been deleted or has not been completely created",
			"ManagedObjectNotFound", fmt.Sprintf(`<obj type="%s">%s</obj>`, ref.Type, ref.Value))
	}
	if value, ok := s.take("query"); ok {
		kind, detail, _ := strings.Cut(value, ":")
		switch kind {
		case "FileFault":
			fileFault(detail, "[LocalDS_0] disk.vmdk")
		case "FileLocked":
			soapFault(w, "Unable to access a file since it is locked", "FileLocked",
				"<file>[LocalDS_0] mail/mail.vmdk</file>")
		case "FileFaultText":
			soapFault(w, detail, "FileFault", "<file>disk</file>")
		case "InvalidArgument":
			invalid(detail)
		case "ManagedObjectNotFound":
			notFound(q.This)
		case "Odd":
			soapFault(w, "odd", detail, "")
		case "Garbage":
			fmt.Fprint(w, detail)
		case "NotAuthenticated":
			soapFault(w, "expired", kind, `<object type="Folder">x</object><privilegeId>x</privilegeId>`)
		}
		return
	}
	lie, _ := s.take("lie")
	s.mu.Lock()
	defer s.mu.Unlock()
	vm, ok := simulator.Map.Get(q.This).(*simulator.VirtualMachine)
	if !ok {
		notFound(q.This)
		return
	}
	d := s.disks[q.This][q.DeviceKey]
	if d == nil {
		invalid("deviceKey")
		return
	}
	file := vm.Config.Files.VmPathName
	if q.Snapshot == nil {
		fileFault("vim.hostd.vmsvc.cbt.noTrack", file)
		return
	}
	taken := s.snapshots[*q.Snapshot]
	if taken == nil {
		invalid("snapshotId")
		return
	}
	if q.StartOffset < 0 || q.StartOffset >= d.capacity {
		invalid("startOffset")
		return
	}
	if d.tracking == "" {
		fileFault("vim.hostd.vmsvc.cbt.noTrack", file)
		return
	}
	frozen := taken.frozen[q.DeviceKey]
	var areas []area
	if q.ChangeId == "*" {
		areas = d.allocated(frozen.count)
	} else {
		tracking, sequence, found := strings.Cut(q.ChangeId, "/")
		from, err := strconv.ParseInt(sequence, 10, 64)
		if !found || err != nil {
			invalid("changeId")
			return
		}
		if tracking != d.tracking || from > frozen.epoch {
			fileFault("vim.hostd.vmsvc.cbt.cannotGetChanges", file)
			return
		}
		areas = d.changed(from, frozen.epoch)
	}
	s.page(w, q.StartOffset, d, areas, lie)
}

// page answers with the areas from `start` on, as many as fit into one answer.
func (s *sim) page(w http.ResponseWriter, start int64, d *disk, areas []area, lie string) {
	var found []area
	length := d.capacity - start
	for _, a := range areas {
		if a.start+a.length <= start {
			continue
		}
		if a.start < start {
			a = area{start, a.start + a.length - start}
		}
		found = append(found, a)
		if len(found) == s.maxAreas {
			length = a.start + a.length - start
			break
		}
	}
	switch lie {
	case "empty": // legal: nothing in the first half of what is left
		if length > 2*d.block {
			length = length / 2 / d.block * d.block
			found = nil
			for _, a := range areas {
				if a.start < start+length && a.start+a.length > start {
					length = max64(a.start-start, d.block)
					if a.start <= start {
						found = []area{{start, d.block}}
					}
					break
				}
			}
		}
	case "start":
		start += d.block
	case "length":
		length = 0
	case "past":
		length = d.capacity - start + d.block
	case "descending":
		found = []area{{start + 2*d.block, d.block}, {start, d.block}}
	case "overlapping":
		found = []area{{start, 2 * d.block}, {start + d.block, 2 * d.block}}
	case "outside":
		found, length = []area{{start, 2 * d.block}}, d.block
	case "negative":
		found = []area{{start, -d.block}}
	case "endless":
		length, found = 1, nil
	}
	var text strings.Builder
	fmt.Fprintf(&text, `<QueryChangedDiskAreasResponse xmlns="urn:vim25"><returnval><startOffset>%d</startOffset><length>%d</length>`, start, length)
	for _, a := range found {
		fmt.Fprintf(&text, "<changedArea><start>%d</start><length>%d</length></changedArea>", a.start, a.length)
	}
	text.WriteString("</returnval></QueryChangedDiskAreasResponse>")
	answer(w, http.StatusOK, text.String())
}

func max64(a, b int64) int64 { return a + b - min64(a, b) }

type counting struct {
	http.ResponseWriter
	s *sim
}

func (c *counting) Write(data []byte) (int, error) {
	n, err := c.ResponseWriter.Write(data)
	c.s.mu.Lock()
	c.s.bytes += int64(n)
	c.s.mu.Unlock()
	return n, err
}

func (s *sim) folder(w http.ResponseWriter, r *http.Request) {
	user, password, basic := r.BasicAuth()
	if !s.isKnown(r) && !(basic && user == s.user && password == s.password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	isFlat := strings.HasSuffix(r.URL.Path, "-flat.vmdk") && r.Header.Get("Range") != ""
	if isFlat {
		s.mu.Lock()
		s.reads++
		if s.expireIn > 0 {
			s.expireIn--
			if s.expireIn == 0 {
				s.cookies = map[string]bool{}
			}
		}
		for d, random := range s.busy {
			check(d.scribble(random))
		}
		s.mu.Unlock()
		for _, status := range []int{403, 404, 416, 500, 503} {
			if _, ok := s.take(fmt.Sprintf("folder%d", status)); ok {
				http.Error(w, "Failed to lock the file", status)
				return
			}
		}
		if _, ok := s.take("folder200"); ok {
			r.Header.Del("Range")
		}
		if _, ok := s.take("folderOther"); ok {
			r.Header.Set("Range", "bytes=0-99") // of another place than was asked for
		}
		if _, ok := s.take("folderDrop"); ok {
			drop(w)
			return
		}
		if _, ok := s.take("folderShort"); ok {
			s.service.ServeMux.ServeHTTP(&short{w, 100}, r)
			return
		}
	}
	s.service.ServeMux.ServeHTTP(&counting{w, s}, r)
}

// short lets an answer end in the middle of its body.
type short struct {
	http.ResponseWriter
	left int
}

func (c *short) Write(data []byte) (int, error) {
	if len(data) > c.left {
		_, _ = c.ResponseWriter.Write(data[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(data)
	return c.ResponseWriter.Write(data)
}

// Control calls.

func (s *sim) control(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	number := func(name string) int64 {
		value, _ := strconv.ParseInt(query.Get(name), 10, 64)
		return value
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = s.controlled(w, path.Base(r.URL.Path), query, number, body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (s *sim) controlled(
	w http.ResponseWriter, name string, query url.Values, number func(string) int64, body []byte,
) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch name {
	case "expire":
		s.cookies = map[string]bool{}
		return nil
	case "expire-in":
		s.expireIn = int(number("reads"))
		return nil
	case "fault":
		s.faults[query.Get("name")] = &fault{int(number("after")), int(number("n")), query.Get("value")}
		return nil
	case "stats":
		return json.NewEncoder(w).Encode(map[string]interface{}{
			"reads": s.reads, "bytes": s.bytes, "calls": s.calls,
		})
	}
	vm, err := machine(query.Get("vm"))
	if err != nil {
		return err
	}
	key := int32(number("key"))
	switch name {
	case "snapshots":
		names := []string{}
		if vm.Snapshot != nil {
			names = namesIn(vm.Snapshot.RootSnapshotList, names)
		}
		return json.NewEncoder(w).Encode(names)
	case "disk":
		return s.newDisk(vm, key, number("bytes"), number("block"), query)
	case "release":
		host := simulator.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
		host.Config.Product.Version = query.Get("version")
		return nil
	case "template":
		vm.Config.Template = true
		return nil
	case "hardware":
		vm.Config.Version = query.Get("version")
		return nil
	case "age": // all snapshots are so much older now
		age(vm.Snapshot.RootSnapshotList, time.Duration(number("hours"))*time.Hour)
		return nil
	case "share": // the bus that all disks hang on
		for _, device := range vm.Config.Hardware.Device {
			if bus, ok := device.(types.BaseVirtualSCSIController); ok {
				bus.GetVirtualSCSIController().SharedBus = types.VirtualSCSISharing(query.Get("sharing"))
			}
		}
		return nil
	}
	d := s.disks[vm.Self][key]
	if d == nil {
		return fmt.Errorf("no disk %d", key)
	}
	switch name {
	case "write":
		return d.write(number("offset"), body)
	case "grow":
		for _, device := range vm.Config.Hardware.Device {
			if v, ok := device.(*types.VirtualDisk); ok && v.Key == key {
				v.CapacityInBytes, v.CapacityInKB = number("bytes"), number("bytes")/1024
			}
		}
		return d.grow(number("bytes"))
	case "reset":
		d.tracking = newTracking()
	case "bar":
		d.barred, d.tracking = true, ""
		setOption(vm, ctk(key), query.Get("setting"))
	case "forget": // what changed is lost, and nobody says so
		d.dirty = map[int64]map[int64]bool{}
	case "busy":
		s.busy[d] = rand.New(rand.NewSource(number("seed")))
	case "idle":
		delete(s.busy, d)
	case "content":
		buffer := make([]byte, (d.capacity+sector-1)/sector*sector)
		if err := d.read(buffer, 0); err != nil {
			return err
		}
		_, err := w.Write(buffer[:d.capacity])
		return err
	default:
		return fmt.Errorf("no control %s", name)
	}
	return nil
}

func namesIn(tree []types.VirtualMachineSnapshotTree, names []string) []string {
	for _, each := range tree {
		names = namesIn(each.ChildSnapshotList, append(names, each.Name))
	}
	return names
}

func machine(name string) (*simulator.VirtualMachine, error) {
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		if vm.Name == name {
			return vm, nil
		}
	}
	return nil, fmt.Errorf("no machine %s", name)
}

// newDisk gives a machine a disk; the first one takes the place of those that vcsim made.
func (s *sim) newDisk(
	vm *simulator.VirtualMachine, key int32, capacity, block int64, query url.Values,
) error {
	var where object.DatastorePath
	where.FromString(vm.Config.Files.VmPathName)
	folder := ""
	for _, entity := range simulator.Map.All("Datastore") {
		if store := entity.(*simulator.Datastore); store.Name == where.Datastore {
			folder = filepath.Join(store.Info.GetDatastoreInfo().Url, path.Dir(where.Path))
		}
	}
	stem := vm.Name
	if key != 2000 {
		stem = fmt.Sprintf("%s_%d", vm.Name, key-2000)
	}
	d, err := newDisk(folder, stem, capacity, block)
	if err != nil {
		return err
	}
	devices := []types.BaseVirtualDevice{}
	for _, device := range vm.Config.Hardware.Device {
		if old, ok := device.(*types.VirtualDisk); ok && s.disks[vm.Self][old.Key] == nil {
			continue
		}
		devices = append(devices, device)
	}
	if s.disks[vm.Self] == nil {
		s.disks[vm.Self] = map[int32]*disk{}
	}
	s.disks[vm.Self][key] = d
	mode := query.Get("mode")
	if mode == "" {
		mode = "persistent"
	}
	d.kind, d.compatibility = query.Get("backing"), query.Get("compatibility")
	d.apart = strings.HasPrefix(mode, "independent") || d.compatibility == "physicalMode" ||
		d.kind == "FlatVer1"
	unit := key - 2000
	file := object.DatastorePath{Datastore: where.Datastore, Path: path.Join(path.Dir(where.Path), d.layers[0].name)}
	made := &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{
			Key: key, ControllerKey: controllerOf(vm), UnitNumber: &unit,
			DeviceInfo: &types.Description{Label: fmt.Sprintf("Hard disk %d", unit+1), Summary: ""},
			Backing: &flat{
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file.String()},
				DiskMode:                     mode, Uuid: d.uuid, Sharing: query.Get("sharing"),
			},
		},
		CapacityInBytes: capacity, CapacityInKB: capacity / 1024,
	}
	vm.Config.Hardware.Device = append(devices, made)
	s.show(vm)
	return nil
}

// ctk is the name of the setting that lets one disk be tracked.
func ctk(key int32) string { return fmt.Sprintf("scsi0:%d.ctkEnabled", key-2000) }

// setOption puts a line into the machine's configuration, or takes it out if the value is empty.
func setOption(vm *simulator.VirtualMachine, key, value string) {
	kept := []types.BaseOptionValue{}
	for _, option := range vm.Config.ExtraConfig {
		if option.GetOptionValue().Key != key {
			kept = append(kept, option)
		}
	}
	if value != "" {
		kept = append(kept, &types.OptionValue{Key: key, Value: value})
	}
	vm.Config.ExtraConfig = kept
}

func age(tree []types.VirtualMachineSnapshotTree, by time.Duration) {
	for i := range tree {
		tree[i].CreateTime = tree[i].CreateTime.Add(-by)
		age(tree[i].ChildSnapshotList, by)
	}
}

// controllerOf returns the key of the bus that disks hang on.
func controllerOf(vm *simulator.VirtualMachine) int32 {
	for _, device := range vm.Config.Hardware.Device {
		if bus, ok := device.(types.BaseVirtualSCSIController); ok {
			return bus.GetVirtualSCSIController().Key
		}
	}
	return 0
}

// layOut lists the files of all layers, with their sizes, as a server does.
func (s *sim) layOut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, disks := range s.disks {
		vm := simulator.Map.Get(ref).(*simulator.VirtualMachine)
		folder := strings.TrimSuffix(vm.Config.Files.VmPathName, path.Base(vm.Config.Files.VmPathName))
		var files []types.VirtualMachineFileLayoutExFileInfo
		for _, file := range vm.LayoutEx.File {
			// vcsim lists deltas as they were when it looked last.
			if file.Key >= 0 && !strings.HasSuffix(file.Name, ".vmdk") {
				files = append(files, file)
			}
		}
		for _, d := range disks {
			for _, l := range d.layers {
				told, err := l.file.Stat()
				check(err)
				files = append(files, types.VirtualMachineFileLayoutExFileInfo{
					// Below those of vcsim, which removes files by their keys.
					Key: -1 - int32(len(files)), Name: folder + filepath.Base(l.file.Name()),
					Type: "diskExtent", Size: told.Size(),
				})
			}
		}
		vm.LayoutEx.File = files
	}
}
