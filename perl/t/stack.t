# The three signals that a worker answers with its stack (docs/reference/worker-protocol.md).
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Serai::Driver;

use constant { TELL => 44, LEAVE => 45, NOW => 46 };

my $APP = <<'APP';
package Shop;
sub wait_for {
    my ($how, $secret) = @_;
    syswrite STDERR, "waits in $$\n";
    if ($how eq 'sleep') { sleep 60 }
    elsif ($how eq 'select') { select undef, undef, undef, 60 }
    elsif ($how eq 'loop') { 1 while 1 }
    elsif ($how eq 'read') { pipe my $r, my $w; readline $r }
    elsif ($how eq 'child') { system 'sleep', 60 }
    elsif ($how eq 'regex') { ('a' x 60) =~ /^(?:(a+)\1?)+[bc]/ }
    elsif ($how eq 'sort') { my @x = sort { $a <=> $b } map { rand } 1 .. 100 while 1 }
    'went on';
}
sub down { my ($n, $how) = @_; $n ? down($n - 1, $how) : wait_for($how) }
package main;
sub {
    my $e = shift;
    my ($how, $depth) = $e->{PATH_INFO} =~ m{^/(\w+)/?(\d+)?};
    return [200, [], [$$]] if $how eq 'pid';
    if ($how eq 'read2') {    # what Perl reads itself goes on after a signal
        open my $gate, '+<', "$ENV{HOME}/gate" or die;
        syswrite STDERR, "waits in $$\n";
        return [200, [], [scalar readline $gate]];
    }
    $SIG{NUM45} = sub { 1 } if $e->{QUERY_STRING} eq 'deaf';
    [200, [], [eval { Shop::down($depth // 0, $how, 'hunter2') }]];
};
APP

sub site (%block) {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', idle => 60000, max => 4, %block]);
    is $d->word, 'ready', 'ready';
    return $d;
}

# waiting starts a request and returns the worker once it waits.
sub waiting ($d, $c, @env) {
    my $from = length $d->log;
    $c->start(@env);
    my ($pid) = $d->log_until(qr/^waits in [0-9]+$/m, $from) =~ /^waits in ([0-9]+)$/m or die $d->log;
    return $pid;
}

# reads waits until a worker waits for a request, or for what a script's process
# prints.
sub reads ($pid) {
    my $number = (POSIX::uname())[4] eq 'aarch64' ? 63 : 0;
    my $until = time + $Serai::Driver::DEADLINE;
    while (time < $until) {
        open my $f, '<', "/proc/$pid/syscall" or last;
        return if (readline($f) // '') =~ /^$number /;
        select undef, undef, undef, 0.005;
    }
    die "worker $pid does not wait for a request\n";
}

for my $how (qw(sleep select read child regex loop sort)) {
    subtest "told to leave in $how" => sub {
        my $d = site();
        my $c = $d->connection;
        my $pid = waiting($d, $c, PATH_INFO => "/$how", REQUEST_URI => "/$how?x=1", SERAI_REQUEST => 'abc');
        kill $how =~ /loop|sort/ ? LEAVE : NOW, $pid;
        ok $c->ended, 'the process ends';
        my $log = $d->log;
        like $log, qr/^Serai: request abc took longer than workers\.timeout, worker $pid ends: GET \/$how\?x=1$/m, 'the request';
        like $log, qr/^    app\.psgi:[0-9]+ Shop::wait_for\n    app\.psgi:[0-9]+ Shop::down\n    app\.psgi:[0-9]+ \(eval\)\n    app\.psgi:[0-9]+ main::__ANON__\n(?!    )/m, 'the stack, and no more';
        unlike $log, qr/hunter2/, 'no arguments';
    };
}

subtest 'depth and names' => sub {
    (my $evil = $APP) =~ s/^package main;/package main;\n#line 7 "@{[ "long\/" x 100 ]}x.pm\e[31m"/m;
    my $d = Serai::Driver->new(files => { 'app.psgi' => $evil }, block => [app => 'app.psgi', max => 1]);
    $d->word;
    my $c = $d->connection;
    my $pid = waiting($d, $c, PATH_INFO => '/sleep/100000', REQUEST_URI => "/\e[2Jx" . 'x' x 9000);
    my $from = length $d->log;
    kill LEAVE, $pid;
    ok $c->ended, 'ends';
    my $log = substr $d->log, $from;
    cmp_ok length $log, '<', 16 << 10, 'bounded';
    is scalar(() = $log =~ /^    app\.psgi:/mg), 50, 'frames';
    like $log, qr/^    and what has called it$/m, 'says that there are more';
    unlike $log, qr/[^ -~\n]/, 'nothing for a terminal';
    $c = site_one($evil);
};

sub site_one ($app) {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $app }, block => [app => 'app.psgi', max => 1]);
    $d->word;
    my $c = $d->connection;
    my $pid = waiting($d, $c, PATH_INFO => '/sleep');
    kill LEAVE, $pid;
    ok $c->ended, 'an only worker ends';
    like $d->log, qr/^    \.\.\.[a-z\/]+x\.pm\\x\{1b\}\[31m:[0-9]+ \(eval\)$/m, 'a long name keeps its end';
}

subtest 'told between requests' => sub {
    my $d = site();
    my $c = $d->connection;
    my $pid = $c->request(PATH_INFO => '/pid')->{body};
    my $from = length $d->log;
    reads($pid);
    kill TELL, $pid;
    is $c->request(PATH_INFO => '/pid')->{body}, $pid, 'goes on';
    reads($pid);
    kill LEAVE, $pid;
    ok $c->ended, 'or ends';
    is substr($d->log, $from), '', 'without a word';
};

# slow is a site, a request of it that waits, and what lets that go on.
sub slow ($after) {
    my $d = site(slow => $after);
    POSIX::mkfifo("$d->{home}/gate", 0600) or die;
    my $c = $d->connection;
    my $pid = waiting($d, $c, PATH_INFO => '/read2', SERAI_REQUEST => 'abc');
    return ($d, $c, $pid, sub { open my $gate, '>', "$d->{home}/gate" or die; print {$gate} "go\n"; close $gate });
}

subtest 'asked where a slow request is' => sub {
    my ($d, $c, $pid, $go) = slow(200);
    select undef, undef, undef, 0.15;    # it has to be slow
    kill TELL, $pid;
    like $d->log_until(qr/^    .*\n(?!    )/m), qr/^Serai: request abc is slow, worker $pid has had it for [0-9.]+ s: GET \/read2\n    app\.psgi:[0-9]+ main::__ANON__$/m, 'stack';
    $go->();
    is $c->reply->{body}, "go\n", 'the request is not harmed';
    is $c->request(PATH_INFO => '/pid')->{body}, $pid, 'the worker serves on';

    ($d, $c, $pid, $go) = slow(1_000_000);
    kill TELL, $pid;
    $go->();
    is $c->reply->{body}, "go\n";
    unlike $d->log, qr/is slow/, 'a request that has just come is not the one meant';
};

subtest 'code with a handler of its own' => sub {
    my $d = site();
    my $c = $d->connection;
    my $pid = waiting($d, $c, PATH_INFO => '/loop', QUERY_STRING => 'deaf');
    kill LEAVE, $pid;
    select undef, undef, undef, 0.2;
    ok kill(0, $pid), 'harms itself: it does not answer';
    kill KILL => $pid;
};

subtest 'scripts' => sub {
    my $d = Serai::Driver->new(files => { 'cgi-bin/slow.cgi' => 'x:' . <<'CGI', }, block => [script => "/cgi-bin\0cgi-bin", max => 1]);
#!/usr/bin/perl
sub total { print STDERR "waits in $$\n"; sleep 60 }
total(1);
CGI
    is $d->word, 'ready', 'ready';
    my $c = $d->connection;
    my $pid = waiting($d, $c, PATH_INFO => '/cgi-bin/slow.cgi');
    kill NOW, $pid;
    ok $c->ended, 'ends';
    like $d->log, qr/^    cgi-bin\/slow\.cgi:2 main::total\n    cgi-bin\/slow\.cgi:3 main program\n(?!    )/m, 'as its author knows it';
};

# A script in a process of its own writes where it is, and ends with its worker.
for my $t (
    ['sleeps', 'fork if 0; sub total { print STDERR "waits in $$\n"; sleep 60 } total();', 'cgi-bin\/slow\.cgi:3 main::total\n    cgi-bin\/slow\.cgi:3 main program'],
    ['loops', 'fork if 0; sub total { print STDERR "waits in $$\n"; 1 while 1 } total();', 'cgi-bin\/slow\.cgi:3 main::total\n    cgi-bin\/slow\.cgi:3 main program'],
    ['in a regular expression', q{fork if 0; print STDERR "waits in $$\n"; ('a' x 60) =~ /^(?:(a+)\1?)+[bc]/;}, 'cgi-bin\/slow\.cgi:3 main program'],
    ['a program', 'exec', 'in process [0-9]+, cgi-bin\/slow\.cgi\n    .*Serai::CGI.*'],
) {
    my ($what, $code, $stack) = @$t;
    subtest "a script in a process of its own: $what" => sub {
        my $text = $code eq 'exec' ? "x:#!/bin/sh\necho waits in \$\$ >&2\nexec sleep 60\n" : "x:#!/usr/bin/perl\n# slow\n$code\n";
        my $d = Serai::Driver->new(files => { 'cgi-bin/slow.cgi' => $text }, block => [script => "/cgi-bin\0cgi-bin", max => 1]);
        is $d->word, 'ready', 'ready';
        my $c = $d->connection;
        my $script = waiting($d, $c, PATH_INFO => '/cgi-bin/slow.cgi');
        isnt $script, $d->{pid}, 'it is another process';
        reads($d->{pid});
        kill NOW, $d->{pid};
        ok $c->ended, 'the worker ends';
        like $d->log, qr/^Serai: request r1 took longer than workers\.timeout, worker [0-9]+ ends: GET \/cgi-bin\/slow\.cgi\n    $stack\n(?!    )/m, 'where the script was';
        ok !kill(0, $script), 'and the script with it';
    };
}

# Asked where it is, it tells if it can, and its reply comes.
for my $t (['a child' => "x:#!/usr/bin/perl\nfork if 0;\nprint STDERR qq{waits in \$\$\\n};\n1 while !-e '../go';\nprint qq{Content-Type: text/plain\\n\\nreply};\n", 'cgi-bin\/slow\.cgi:[45] main program'],
    ['a program' => "x:#!/bin/sh\necho waits in \$\$ >&2\nuntil [ -e ../go ]; do sleep 0.05; done\nprintf 'Content-Type: text/plain\\n\\nreply'\n", 'in process [0-9]+, cgi-bin\/slow\.cgi\n.*']) {
    my ($what, $text, $stack) = @$t;
    subtest "a slow script in a process of its own: $what" => sub {
        my $d = Serai::Driver->new(files => { 'cgi-bin/slow.cgi' => $text }, block => [script => "/cgi-bin\0cgi-bin", max => 1, slow => 200]);
        is $d->word, 'ready', 'ready';
        my $c = $d->connection;
        waiting($d, $c, PATH_INFO => '/cgi-bin/slow.cgi');
        select undef, undef, undef, 0.15;
        reads($d->{pid});
        kill TELL, $d->{pid};
        like $d->log_until(qr/^    .*\n(?!    )/m), qr/^Serai: request r1 is slow, worker [0-9]+ has had it for [0-9.]+ s: GET \/cgi-bin\/slow\.cgi\n    $stack\n/m, 'where it is';
        $d->write('site/go', '');
        is $c->reply->{body}, 'reply', 'the reply';
    };
}

done_testing;
