package Serai::Rehearsal;

# What a zygote runs once of the modules of its set, before any site is forked
# from it: much of them is loaded, compiled or allocated at first use only, and
# what that makes is shared when it is there before the fork.
#
# A rehearsal must leave nothing that a site could see but modules that are
# loaded and caches of code: a framework that knows its applications forgets the
# one that was rehearsed. It must draw no random number that is kept: generators
# of session ids seed themselves at first use, and all sites would give out the
# same ids. Each is text, for keywords are exported to code that is compiled when
# the framework is there.

use v5.36;
use Serai::Override;

our %OF = (
    CGI => <<'CODE',
my $q = CGI->new('name=a&b=c%20d');
my ($name, $all, @got) = (scalar $q->param('name'), scalar $q->Vars, $q->multi_param('b'), $q->param, $q->escapeHTML('<a>&"'), $q->url, $q->self_url);
my $cookie = $q->cookie(-name => 'a', -value => 'b', -expires => '+1h');
$q->header(-type => 'text/html', -charset => 'utf-8', -cookie => $cookie);
$q->redirect('/');
$q->start_html(-title => 't', -style => 's.css');
$q->$_('x') for qw(h1 h2 h3 p td th Tr table ul ol li a b i em strong div span pre code), qw(br hr img);
$q->start_form;
$q->$_(-name => 'name', -values => ['a', 'b']) for qw(textfield hidden password_field textarea checkbox popup_menu radio_group);
$q->submit;
$q->end_form;
$q->end_html;
CGI::initialize_globals();
CODE

    Dancer2 => <<'CODE',
package Serai::Rehearsal::Dancer2;
use Dancer2;
set logger => 'null';
set startup_info => 0;
set charset => 'utf-8';
get '/' => sub { response_header 'X-A' => 'b'; 'hello ' . query_parameters->get('a') };
get '/item/:id' => sub { content_type 'application/json'; to_json({ id => route_parameters->get('id') }, { canonical => 1 }) };
get '/cookie' => sub { cookie a => 'b'; redirect '/' };
get '/template' => sub { template \'[% a %]', { a => 1 } };
get '/error' => sub { send_error 'no', 404 };
post '/' => sub { body_parameters->get('a') };
my $app = __PACKAGE__->to_app;
Serai::Rehearsal::ask($app, $_) for '/', '/item/1', '/cookie', '/template', '/error', '/nothing';
Serai::Rehearsal::ask($app, '/', 'a=b');
undef $Dancer2::runner;
CODE

    Mojolicious => <<'CODE',
package Serai::Rehearsal::Mojolicious;
use Mojolicious::Lite -signatures;
app->log->level('fatal');
app->mode('production');
hook after_build_tx => sub ($tx, $app) { $tx->req->request_id('r') };    # else it is seeded here
get '/' => sub ($c) { $c->res->headers->header('X-A' => 'b'); $c->cookie(a => 'b'); $c->render(text => $c->param('a')) };
get '/json' => sub ($c) { $c->render(json => { a => 1 }) };
get '/template' => sub ($c) { $c->render(inline => '<%= $a %>', a => 1) };
post '/' => sub ($c) { $c->redirect_to('/') };
my $app = app->start('psgi');
Serai::Rehearsal::ask($app, $_) for '/', '/json', '/template', '/nothing';
Serai::Rehearsal::ask($app, '/', 'a=b');
Mojo::IOLoop->reset;
CODE

    Catalyst => <<'CODE',
package Serai::Rehearsal::Catalyst::Controller::Root;
BEGIN { $INC{'Serai/Rehearsal/Catalyst/Controller/Root.pm'} = __FILE__ }
use parent 'Catalyst::Controller';
__PACKAGE__->config(namespace => '');
sub index : Path Args(0) { $_[1]->res->header('X-A' => 'b'); $_[1]->res->body('hello ' . $_[1]->req->query_params->{a}) }
sub item : Local Args(1) { $_[1]->stash(id => $_[2]); $_[1]->res->content_type('text/plain'); $_[1]->res->body($_[1]->uri_for('/item', 1)) }
sub post : Local Args(0) POST { $_[1]->res->redirect($_[1]->req->body_params->{a}) }
sub default : Path { $_[1]->res->status(404); $_[1]->res->body('nothing') }
package Serai::Rehearsal::Catalyst;
use parent -norequire, 'Catalyst';
use Catalyst;
__PACKAGE__->config(name => 'Rehearsal', disable_component_resolution_regex_fallback => 1);
__PACKAGE__->setup_component('Serai::Rehearsal::Catalyst::Controller::Root');
__PACKAGE__->setup;
my $app = __PACKAGE__->psgi_app;
Serai::Rehearsal::ask($app, $_) for '/', '/item/1', '/nothing';
Serai::Rehearsal::ask($app, '/post', 'a=b');
CODE
);

# run rehearses the modules that there is a rehearsal of. It returns a sentence
# for each that failed.
sub run (@modules) {
    my @failed;
    for my $module (grep { exists $OF{$_} } @modules) {
        local (%ENV, %SIG) = ();
        compile($OF{$module} . "\n1;\n") or push @failed, "$module: its rehearsal died: " . ($@ =~ s/\s+/ /gr);
    }
    return @failed;
}

# ask asks an application as a site would, and takes its reply.
sub ask ($app, $path, $body = undef) {
    open my $input, '<', \($body // '') or die "open a body: $!\n";
    my %env = (
        REQUEST_METHOD => defined $body ? 'POST' : 'GET', SCRIPT_NAME => '', PATH_INFO => $path, REQUEST_URI => "$path?a=b", QUERY_STRING => 'a=b',
        SERVER_NAME => 'www.example.com', SERVER_PORT => 80, SERVER_PROTOCOL => 'HTTP/1.1', REMOTE_ADDR => '192.0.2.1', SERAI_REQUEST => 'r',
        HTTP_HOST => 'www.example.com', HTTP_USER_AGENT => 'rehearsal', HTTP_ACCEPT => '*/*', HTTP_COOKIE => 'a=b',
        defined $body ? (CONTENT_LENGTH => length $body, CONTENT_TYPE => 'application/x-www-form-urlencoded') : (),
        'psgi.version' => [1, 1], 'psgi.url_scheme' => 'http', 'psgi.input' => $input, 'psgi.errors' => \*STDERR, 'psgi.streaming' => 1,
        'psgi.multithread' => '', 'psgi.multiprocess' => '', 'psgi.run_once' => '', 'psgi.nonblocking' => '', 'psgix.input.buffered' => 1,
    );
    my $reply = $app->(\%env);
    return $reply if ref $reply ne 'CODE';
    my $given;
    $reply->(sub ($reply) { $given = $reply; return bless [], 'Serai::Rehearsal::Writer' });
    return $given;
}

package Serai::Rehearsal::Writer;
sub write { }
sub close { }

# At the end, where no variable is in sight.
package Serai::Rehearsal;
no strict;
no warnings;
no feature ':all';
use feature ':default';
sub compile { eval $_[0] }

1;
