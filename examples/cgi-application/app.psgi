# A guest list in CGI::Application: sessions in files, uploads, a long poll.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Guests;

Guests->psgi_app;
