# The writer of a PSGI application that streams: every way to use it wrongly, a
# client that has gone, and a worker that is told to leave.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Serai::Driver;

my $APP = <<'APP';
use strict; use warnings;
my $T = ['Content-Type' => 'text/plain'];
package Endless { sub new { bless {}, shift } sub getline { 'x' x 65536 } sub close { print STDERR "getline closed\n" } }
package main;
my ($kept, $other);
sub stream { my $do = shift; sub { $do->($_[0]->([200, $T]), $_[0]) } }
my %do = (
    '/hello' => sub { [200, $T, ["$$\n"]] },
    '/undef' => sub { stream(sub { $_[0]->write($_) for 'a', undef, '', 0, 'b'; $_[0]->close }) },
    '/latin1' => sub { stream(sub { my $s = "caf\xe9"; utf8::upgrade($s); $_[0]->write($s); $_[0]->close }) },
    '/wide' => sub { stream(sub { $_[0]->write('a'); $_[0]->write("\x{263a}") }) },
    '/wide-caught' => sub { stream(sub { eval { $_[0]->write("\x{263a}") }; $_[0]->write($@ =~ /Wide/ ? 'caught' : 'no'); $_[0]->close }) },
    '/dies' => sub { stream(sub { $_[0]->write('a'); die "in the stream\n" }) },
    '/dies-at-once' => sub { stream(sub { die "before a byte\n" }) },
    '/dies-after-close' => sub { stream(sub { $_[0]->write('a'); $_[0]->close; die "late\n" }) },
    '/never-closed' => sub { stream(sub { $_[0]->write('a') }) },
    '/closed-twice' => sub { stream(sub { $_[0]->write('a'); $_[0]->close; $_[0]->close }) },
    '/write-after-close' => sub { stream(sub { $_[0]->close; $_[0]->write('x') }) },
    '/twice' => sub { stream(sub { $_[0]->write('a'); $_[1]->([200, $T]) }) },
    '/bad-head' => sub { sub { $_[0]->([200, ['X A' => 1]]) } },
    '/bad-head-mended' => sub { sub { my $r = shift; eval { $r->(['x', $T]) }; my $w = $r->([200, $T]); $w->write('mended'); $w->close } },
    '/keep' => sub { stream(sub { $kept = $_[0]; $_[0]->write('mine') }) },
    '/keep-and-die' => sub { stream(sub { $kept = $_[0]; die "kept\n" }) },
    '/use-kept' => sub { stream(sub { eval { $kept->write('stolen') }; my $why = $@; $kept->close; $_[0]->write("own $why"); $_[0]->close }) },
    '/use-kept-bare' => sub { eval { $kept->write('stolen') }; $kept->close; [200, $T, ["own $@"]] },
    '/child' => sub { stream(sub { my $p = fork; if (!$p) { $_[0]->write('of the child'); exit } waitpid $p, 0; $_[0]->write('of the worker'); $_[0]->close }) },
    '/exit' => sub { stream(sub { $_[0]->write('a'); exit }) },
    '/no-body' => sub { sub { my $w = $_[0]->([204, []]); $w->write('not sent'); $w->close } },
    '/endless' => sub { stream(sub { my $n = 0; eval { while (1) { $_[0]->write('x' x 65536); $n++ } }; print STDERR "told after $n: $@"; die $@ }) },
    '/endless-uncaught' => sub { stream(sub { while (1) { $_[0]->write('x' x 65536) } }) },
    '/endless-getline' => sub { [200, $T, Endless->new] },
    '/big' => sub { [200, $T, ['z' x 50_000_000]] },
    '/gone-and-dies' => sub { stream(sub { eval { while (1) { $_[0]->write('x' x 65536) } }; die "of its own\n" }) },
    '/harakiri' => sub { $_[0]{'psgix.harakiri.commit'} = 1; [200, $T, ["$$\n"]] },
    '/harakiri-stream' => sub { $_[0]{'psgix.harakiri.commit'} = 1; stream(sub { $_[0]->write("$$\n"); $_[0]->close }) },
    '/harakiri-dies' => sub { $_[0]{'psgix.harakiri.commit'} = 1; die "and leaves\n" },
    '/harakiri-cleanup' => sub { my $e = shift; push @{ $e->{'psgix.cleanup.handlers'} }, sub { $_[0]{'psgix.harakiri.commit'} = 1 }; [200, $T, ["$$\n"]] },
    '/harakiri-0' => sub { $_[0]{'psgix.harakiri.commit'} = 0; [200, $T, ["$$\n"]] },
);
sub { my $e = shift; $do{ $e->{PATH_INFO} }->($e) };
APP

sub site (%o) {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1, idle => 60000, %o]);
    is $d->word, 'ready', 'ready';
    return $d;
}
my $d = site();
my $c = $d->connection;

# path, status, body, and: abort, log
my $page = qr/\A500 Internal Server Error\n/;
for my $case (
    ['/undef', 200, 'a0b'], ['/latin1', 200, "caf\xe9"],
    ['/wide', 200, 'a', abort => 1, log => qr/failed in app\.psgi: a character above 255 in the reply: encode it/],
    ['/wide-caught', 200, 'caught'],
    ['/dies', 200, 'a', abort => 1, log => qr/failed in app\.psgi: in the stream/],
    ['/dies-at-once', 200, '', abort => 1, log => qr/before a byte/],
    ['/dies-after-close', 200, 'a', log => qr/failed in app\.psgi: late/],
    ['/never-closed', 200, 'a'], ['/closed-twice', 200, 'a'],
    ['/write-after-close', 200, '', log => qr/failed in app\.psgi: write after close/],
    ['/twice', 200, 'a', abort => 1, log => qr/given twice/],
    ['/bad-head', 500, $page, log => qr/a header name that is none: "X A"/], ['/bad-head-mended', 200, 'mended'],
    ['/keep', 200, 'mine'], ['/use-kept', 200, "own write after close\n"], ['/use-kept-bare', 200, "own write after close\n"],
    ['/keep-and-die', 200, '', abort => 1], ['/use-kept', 200, "own write after close\n"], ['/use-kept-bare', 200, "own write after close\n"],
    ['/child', 200, 'of the worker'], ['/no-body', 204, ''],
    ['/hello', 200, "$d->{pid}\n"],
) {
    my ($path, $status, $body, %o) = @$case;
    my $before = length $d->log;
    my $r = $c->request(PATH_INFO => $path);
    is $r->{status}, $status, $path;
    ref $body ? like $r->{body}, $body, "$path: the body" : is $r->{body}, $body, "$path: the body";
    is defined $r->{abort}, !!$o{abort}, "$path: broken off or not";
    like $d->log_until($o{log}, $before), $o{log}, "$path: the log" if $o{log};
}

subtest 'the client has gone: the same process serves the next' => sub {
    for my $case (
        ['/endless', qr/told after \d+: the client has gone$/m], ['/endless-uncaught'],
        ['/endless-getline', qr/^getline closed$/m], ['/big'],
        ['/gone-and-dies', qr/failed in app\.psgi: of its own/],
    ) {
        my ($path, $log) = @$case;
        my $before = length $d->log;
        $c->start(PATH_INFO => $path);
        my ($type) = $c->frame;
        is $type, 'h', "$path has begun";
        $c->drop;
        $c = $d->connection;
        is $c->request(PATH_INFO => '/hello')->{body}, "$d->{pid}\n", "$path: the next request";
        like $d->log_until($log, $before), $log, "$path: the log" if $log;
        unlike substr($d->log, $before), qr/failed in app\.psgi: the client has gone|Broken pipe/, "$path is no failure";
    }
};

subtest 'harakiri: the worker says so in the reply, and leaves' => sub {
    for my $path ('/harakiri', '/harakiri-stream', '/harakiri-dies') {
        my $d = site();
        my $c = $d->connection;
        ok !$c->request(PATH_INFO => '/harakiri-0')->{leaves}, 'a commit that is false';
        my $r = $c->request(PATH_INFO => $path);
        if ($path eq '/harakiri-dies') {    # too late for this reply
            ok !$r->{leaves}, "$path: not yet";
            $r = $c->request(PATH_INFO => '/hello');
        }
        is $r->{leaves}, $path eq '/harakiri-dies' ? 1 : 5, "$path: by the code's own will";
        ok $c->ended, 'end of file';
        is $d->ended, 0, 'the process left';
    }
};

subtest 'harakiri in a cleanup handler: with the next reply' => sub {
    my $d = site(requests => 9);
    my $c = $d->connection;
    my $r = $c->request(PATH_INFO => '/harakiri-cleanup');
    ok !$r->{leaves}, 'the reply had gone';
    $r = $c->request(PATH_INFO => '/hello');
    is $r->{leaves}, 1, 'the next';
    is $d->ended, 0, 'the process left';
};

subtest 'exit in a stream' => sub {
    my $r = $c->request(PATH_INFO => '/exit');
    is $r->{body}, 'a', 'what it wrote';
    is $r->{abort}, 'the code called exit', 'broken off';
    is $r->{leaves}, 5, 'it leaves';
};
unlike $d->log, qr/Use of|uninitialized|redefined/, 'no warning of our own';

done_testing;
