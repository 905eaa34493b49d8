package api

import (
	"encoding"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"encoding/json"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

// openAPI describes the table of routes in the language of OpenAPI 3.1.
func (s *Server) openAPI(c *call) (any, error) {
	s.reply(c, 200, describeAPI(s.version))
	return streamed{}, nil
}

type object = map[string]any

func describeAPI(version string) object {
	schemas := object{}
	paths := object{}
	for _, rt := range routes() {
		op := object{"summary": rt.summary, "x-access": rt.access.String(), "responses": object{
			"200":     answer(rt, schemas),
			"default": object{"description": "what is wrong", "content": jsonOf(client.ErrorBody{}, schemas)},
		}}
		var params []object
		for _, name := range pathParams(rt.path) {
			params = append(params, object{"name": name, "in": "path", "required": true, "schema": object{"type": "string"}})
		}
		for _, q := range rt.query {
			params = append(params, object{"name": q.name, "in": "query", "description": q.meaning, "schema": object{"type": "string"}})
		}
		if params != nil {
			op["parameters"] = params
		}
		if rt.in != nil {
			content := object{}
			if r, ok := rt.in.(raw); ok {
				content[r.contentType] = object{}
			} else {
				content = jsonOf(rt.in, schemas)
			}
			op["requestBody"] = object{"required": true, "content": content}
		}
		if paths[rt.path] == nil {
			paths[rt.path] = object{}
		}
		paths[rt.path].(object)[strings.ToLower(rt.method)] = op
	}
	return object{
		"openapi":    "3.1.0",
		"info":       object{"title": "Serai", "version": version},
		"paths":      paths,
		"components": object{"schemas": schemas},
	}
}

func pathParams(path string) (names []string) {
	for _, part := range strings.Split(path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			names = append(names, strings.TrimSuffix(name, "}"))
		}
	}
	return names
}

func answer(rt endpoint, schemas object) object {
	if rt.out == nil {
		return object{"description": "done", "content": object{rt.stream: object{}}}
	}
	return object{"description": "done", "content": jsonOf(rt.out, schemas)}
}

func jsonOf(v any, schemas object) object {
	return object{"application/json": object{"schema": schema(reflect.TypeOf(v), schemas)}}
}

var (
	textType = reflect.TypeFor[encoding.TextMarshaler]()
	timeType = reflect.TypeFor[time.Time]()
	rawType  = reflect.TypeFor[json.RawMessage]()
)

// schema describes a Go type as its JSON looks. Structs with a name go to
// schemas once and are referred to.
func schema(t reflect.Type, schemas object) object {
	switch {
	case t.Kind() == reflect.Pointer:
		return schema(t.Elem(), schemas)
	case t == timeType:
		return object{"type": "string", "format": "date-time"}
	case t == rawType:
		return object{"type": "object", "description": "a Plan, Tenant or Site"}
	case t.Implements(textType):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Slice:
		return object{"type": "array", "items": schema(t.Elem(), schemas)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schema(t.Elem(), schemas)}
	case reflect.Struct:
		if _, known := schemas[t.Name()]; !known {
			schemas[t.Name()] = nil // breaks cycles
			props := object{}
			properties(t, props, schemas)
			schemas[t.Name()] = object{"type": "object", "properties": props}
		}
		return object{"$ref": "#/components/schemas/" + t.Name()}
	default:
		return object{"type": "integer"}
	}
}

func properties(t reflect.Type, props, schemas object) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			properties(f.Type, props, schemas)
		case name != "" && name != "-":
			props[name] = schema(f.Type, schemas)
		}
	}
}

// WriteReference writes the reference of the API as Markdown.
func WriteReference(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# The API

Made from the table of routes in internal/api by its test (-update).

HTTP with JSON on the unix socket api.sock in the run directory
(/run/serai/api.sock), open to all. Who the caller is, the kernel says: root
and the members of the operators' group are operators; an account of a tenant
sees and changes what is its own, and for anything else gets the same answer
as for what does not exist; a process in the cgroup of a site is that site's
code, and may only reload or restart it and send mail; all others get 403. GET /openapi.json
describes the same routes with all types.

An error is ` + "`{\"error\": {\"kind\", \"message\", \"hint\", \"problems\"}}`" + `. Its kind says who
must act:

| kind | status | who must act |
|---|---|---|
`)
	for _, k := range kindsOfErrors {
		fmt.Fprintf(&b, "| %s | %d | %s |\n", k.kind, httpStatus(k.kind), k.who)
	}
	b.WriteString(`
A method that a path does not have is 405. A parameter that a route does not
know is an error. A body is at most 64 MiB, of a tenant 1 MiB.

## Routes

| route | who | what |
|---|---|---|
`)
	for _, rt := range routes() {
		fmt.Fprintf(&b, "| `%s %s` | %s | %s |\n", rt.method, rt.path, rt.access, rt.summary)
	}
	b.WriteString("\n## Parameters and bodies\n")
	for _, rt := range routes() {
		if rt.query == nil && rt.in == nil {
			continue
		}
		fmt.Fprintf(&b, "\n### %s %s\n\n", rt.method, rt.path)
		if rt.in != nil {
			if r, ok := rt.in.(raw); ok {
				fmt.Fprintf(&b, "Takes %s, at most %s,\n", r.contentType, serai.Bytes(r.max))
			} else {
				b.WriteString("Takes\n\n")
				fields(&b, reflect.TypeOf(rt.in))
			}
			b.WriteString("\nand gives\n\n")
			fields(&b, reflect.TypeOf(rt.out))
		}
		for _, q := range rt.query {
			fmt.Fprintf(&b, "- `%s`: %s\n", q.name, q.meaning)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fields lists the fields of a body, nested ones with their path.
func fields(b *strings.Builder, t reflect.Type) {
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			ft := f.Type
			path := prefix + name
			if ft.Kind() == reflect.Slice {
				ft, path = ft.Elem(), path+"[]"
			}
			if ft.Kind() == reflect.Struct && ft != timeType {
				walk(path+".", ft)
				continue
			}
			typ, _ := schema(ft, object{})["type"].(string)
			fmt.Fprintf(b, "- `%s`: %s\n", path, typ)
		}
	}
	walk("", t)
}
