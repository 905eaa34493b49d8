# A guest list in Catalyst: sessions in files, uploads, a long poll, a stream.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Guests;

Guests->psgi_app;
