package reconcile

import (
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/route"
)

// What a site mounts follows the entry: there, changed, gone, and over a start
// of seraid.
func TestMounts(t *testing.T) {
	w := newWorld(t)
	w.start()
	shop, wiki, book := siteKey("alice", "shop"), siteKey("alice", "wiki"), serai.EntryKey("book")
	site := aSite("alice", "shop", "shop.test")
	site.Spec.Mount = map[string]serai.Mount{"/guests": {Use: "book", Settings: map[string]string{"title": "Mine"}}, "/a b": {Use: "book"}}
	w.create(aPlan(), aTenant("alice"), site, aSite("alice", "wiki", "wiki.test"))
	w.awaitReady(shop, wiki)
	mounts := func() []route.Mount {
		w.rec.routes.mu.Lock()
		defer w.rec.routes.mu.Unlock()
		for _, r := range w.rec.routes.records {
			if s := r.record.Site; s != nil && s.Name == "shop" {
				return s.Mounts
			}
		}
		return nil
	}
	await := func(what string, want []route.Mount) {
		t.Helper()
		w.await(what, func() bool { return reflect.DeepEqual(mounts(), want) })
	}
	none := []route.Mount{{Prefix: "/a b"}, {Prefix: "/guests"}}
	await("nothing is there", none)

	entry := aSite(serai.CatalogueTenant, "book")
	entry.Spec.Catalogue = &serai.Catalogue{Title: "Book", Version: "1", Settings: map[string]serai.Setting{"title": {Type: "text", Default: "Guests"}}}
	w.create(aTenant(serai.CatalogueTenant), entry)
	w.awaitReady(book)
	tenant, err := w.store.Get(t.Context(), tenantKey(serai.CatalogueTenant))
	if err != nil {
		t.Fatal(err)
	}
	alice, err := w.store.Get(t.Context(), tenantKey("alice"))
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(tenant.(*serai.Tenant).Status.Home, "book", strconv.Itoa(int(alice.(*serai.Tenant).Status.UID)), "shop")
	want := func(title string) []route.Mount {
		number := uint32(w.site(book).Meta.ID)
		env := func(prefix, dir, title string) map[string]string {
			return map[string]string{"SERAI_SITE": "alice/shop", "SERAI_MOUNT": prefix, "SERAI_DATA": data + "/" + dir, "SERAI_SETTING_TITLE": title}
		}
		return []route.Mount{{Prefix: "/a b", Site: number, Env: env("/a b", "%2Fa%20b", title)}, {Prefix: "/guests", Site: number, Env: env("/guests", "%2Fguests", "Mine")}}
	}
	await("the entry is there", want("Guests"))
	edit(w, book, func(s *serai.Site) {
		s.Spec.Catalogue.Settings["title"] = serai.Setting{Type: "text", Default: "Visitors"}
	})
	await("another default", want("Visitors"))

	w.stop()
	w.start()
	await("seraid was started anew", want("Visitors"))
	w.awaitIdle()

	if err := w.store.Delete(t.Context(), book, ""); err != nil {
		t.Fatal(err)
	}
	await("the entry is gone", none)
}
