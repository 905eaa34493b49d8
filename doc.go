// Package serai is the dictionary of the business: plans, tenants, sites, the
// conditions they are in, the events that befall them, and errors that say who
// must act. It holds values only: standard library, no input or output.
package serai

// APIVersion is the only value of the field apiVersion. A manifest may leave
// the field out.
const APIVersion = "serai.dev/v1"
