package Guests;

use strict;
use warnings;
use parent 'Catalyst';
use File::Basename 'dirname';
use Catalyst qw(Session Session::State::Cookie Session::Store::File);

# Beside app.psgi. A file of Session::Store::File is every worker's.
our $VAR = dirname(dirname(__FILE__)) . '/var';
mkdir $VAR;

__PACKAGE__->config(
    name => 'Guests',
    disable_component_resolution_regex_fallback => 1,
    'Plugin::Session' => { storage => "$VAR/sessions", expires => 3600 },
);
__PACKAGE__->setup;

1;
