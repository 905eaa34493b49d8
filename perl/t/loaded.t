# A site with a loaded process: workers by fork, the proxy's death, draining.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Serai::Driver;

my $APP = <<'APP';
my $loaded = $$;
my $n = 0;
END { print STDERR "END in ", ($$ == $loaded ? 'loaded' : 'worker'), "\n" }
sub {
    my $e = shift;
    my %do = (
        '/pid' => sub { "$$ $loaded" }, '/count' => sub { ++$n }, '/rand' => sub { rand }, '/exit' => sub { exit 0 },
        '/multi' => sub { $e->{'psgi.multiprocess'} ? 1 : 0 }, '/kill' => sub { kill KILL => $$; sleep 9 },
        '/title' => sub { open my $f, '<', '/proc/self/cmdline'; readline $f }, '/system' => sub { system('sh', '-c', 'exit 7') >> 8 },
        '/fds' => sub { `ls /proc/self/fd` }, '/sig' => sub { $SIG{CHLD} // 'none' },
        '/background' => sub { my $p = fork; if (!$p) { exec 'sleep', '20' } $p },
    );
    [200, ['Content-Type' => 'text/plain'], [$do{ $e->{PATH_INFO} }->()]];
};
APP
my $SH = '$SIG{CHLD} = sub { 1 }; $main::started = 1;';

sub site (@block) {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $APP, 'startup.pl' => $SH }, block => [app => 'app.psgi', startup => 'startup.pl', idle => 60000, @block]);
    is $d->word, 'ready', 'ready';
    return $d;
}
sub pid_of ($c) { return (split / /, $c->request(PATH_INFO => '/pid')->{body})[0] }
# waits until a worker waits for a connection: until it sleeps in select, not in read.
sub waits ($pid) {
    my $read = (POSIX::uname())[4] eq 'aarch64' ? 63 : 0;
    my $until = time + $Serai::Driver::DEADLINE;
    while (time < $until) {
        open my $f, '<', "/proc/$pid/syscall" or last;
        return if (readline($f) // '') =~ /^(\d+) / && $1 != $read;
        select undef, undef, undef, 0.01;
    }
    die "worker $pid does not wait for a connection\n";
}
sub gone ($pid) {
    my $until = time + $Serai::Driver::DEADLINE;
    while (kill 0 => $pid) { return 0 if time > $until; select undef, undef, undef, 0.01 }
    return 1;
}

subtest 'one connection, one worker' => sub {
    my $d = site(max => 4, min => 1);
    my @c = map { $d->connection } 1 .. 3;
    my %pid = map { pid_of($_) => 1 } @c;
    is keys %pid, 3, 'three workers';
    ok !$pid{ $d->{pid} }, 'none is the loaded process';
    is $c[0]->request(PATH_INFO => '/multi')->{body}, 1, 'psgi.multiprocess';
    is $c[0]->request(PATH_INFO => '/count')->{body}, 1;
    is $c[1]->request(PATH_INFO => '/count')->{body}, 1, 'state is a worker\'s own';
    isnt $c[0]->request(PATH_INFO => '/rand')->{body}, $c[1]->request(PATH_INFO => '/rand')->{body}, 'seeds differ';
    like $c[0]->request(PATH_INFO => '/title')->{body}, qr/^serai alice\/shop worker\0*$/, 'title';
    is $c[0]->request(PATH_INFO => '/system')->{body}, 7, 'system works';
    like $c[0]->request(PATH_INFO => '/sig')->{body}, qr/^CODE/, 'the handler of the startup file';
    unlike $c[0]->request(PATH_INFO => '/fds')->{body}, qr/^[456789]$/m, 'no descriptor of ours in a program';
    my $gone = pid_of($c[0]);
    $c[0]->quit;
    ok $c[0]->ended && gone($gone), 'quit ends one';
    my $next = $d->connection;
    isnt pid_of($next), $gone, 'and another comes';
    like $d->log, qr/^END in worker$/m, 'END blocks run';
    unlike $d->log, qr/^END in loaded$/m;
    my $killed = pid_of($next);
    $next->start(PATH_INFO => '/kill');
    ok $next->ended, 'a worker that is killed';
    ok gone($killed), 'was reaped';
    my $exits = $d->connection;
    is $exits->request(PATH_INFO => '/exit')->{abort}, 'the code called exit', 'a worker whose code exits says so';
    $_->quit for @c[1, 2];
};

subtest 'the proxy dies: the same processes serve the next' => sub {
    my $d = site(max => 4, min => 1);
    my @c = map { $d->connection } 1 .. 3;
    my @old = sort map { pid_of($_) } @c;
    $_->drop for @c;
    waits($_) for @old;
    my @new = map { $d->connection } 1 .. 3;
    is_deeply [sort map { pid_of($_) } @new], \@old, 'three workers, the same';
    my $fourth = pid_of($d->{four} = $d->connection);
    ok !(grep { $_ == $fourth } @old), 'a fourth is forked again';
    my $dead = $old[0];
    $_->drop for @new;
    kill KILL => $dead;
    gone($dead);
    waits($_) for grep { $_ != $dead } @old;
    my @last = map { $d->connection } 1 .. 3;
    is +(grep { my $p = $_; grep { $_ == $p } @old } map { pid_of($_) } @last), 2, 'one that died meanwhile is made up for';
};

subtest 'a background child does not hold the connection' => sub {
    my $d = site(max => 2, min => 1);
    my $c = $d->connection;
    my $sleeper = $c->request(PATH_INFO => '/background')->{body};
    $c->quit;
    ok $c->ended, 'end of file though it lives';
    ok kill(KILL => $sleeper), 'it lived';
};

subtest 'the number of requests' => sub {
    my $d = site(max => 2, min => 1, requests => 3);
    my $c = $d->connection;
    my @r = map { $c->request(PATH_INFO => '/count') } 1 .. 3;
    is join(' ', map { $_->{leaves} } @r), '0 0 1', 'the last says so';
    ok $c->ended, 'and then leaves';
    is $d->connection->request(PATH_INFO => '/count')->{body}, 1, 'a new one serves';
};

subtest 'leaves after its last child where min is 0' => sub {
    my $d = site(max => 2, min => 0);
    my $c = $d->connection;
    pid_of($c);
    $c->quit;
    is $d->ended, 0, 'left';
    like $d->log, qr/^END in loaded$/m, 'END blocks run';
};

subtest 'drain' => sub {
    my $d = site(max => 4, min => 2);
    my ($busy, $waits) = map { $d->connection } 1, 2;
    pid_of($busy); my $w = pid_of($waits);
    $waits->drop;
    $d->drain;
    ok gone($w), 'a waiting worker leaves';
    is $busy->request(PATH_INFO => '/count')->{body}, 1, 'a connected one still serves';
    $busy->quit;
    is $d->ended, 0, 'then the loaded process leaves';
};

subtest 'drain with nobody there' => sub {
    my $d = site(max => 4, min => 2);
    $d->drain;
    is $d->ended, 0;
};

subtest 'drain of an only worker' => sub {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1]);
    $d->word;
    $d->drain;
    is $d->ended, 0, 'idle';
    $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1, min => 1]);
    $d->word;
    my $c = $d->connection;
    $d->drain;
    is $c->request(PATH_INFO => '/count')->{body}, 1, 'still serves';
    $c->drop;
    is $d->ended, 0, 'leaves at the end of its connection';
};

subtest 'end of file on the status socket ends nothing' => sub {
    my $d = site(max => 2, min => 1);
    my $c = $d->connection;
    pid_of($c);
    close $d->{status};
    is $c->request(PATH_INFO => '/count')->{body}, 1;
    is $d->connection->request(PATH_INFO => '/count')->{body}, 1;
};

subtest 'idle' => sub {
    my $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1, idle => 20]);
    is $d->word, 'ready';
    is $d->ended, 0, 'an only worker leaves';
    $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 3, idle => 20]);
    is $d->word, 'ready';
    is $d->ended, 0, 'a loaded process that nobody asks leaves';
};

subtest 'a listener that was shut down' => sub {
    my $d = site(max => 2, min => 1);
    shutdown $d->{listener}, 2;
    is $d->ended, 0, 'the process leaves instead of spinning';
    like $d->log, qr/accept: /;
};

subtest 'frames out of turn' => sub {
    for (["Q", 'quit'], [pack('NaC', 1, 'Z', 0), 'unknown'], [pack('Na', 0, 'E'), 'end without a request'], [pack('Na', 1 << 30, 'R'), 'huge']) {
        my ($bytes, $name) = @$_;
        next if $bytes eq 'Q';
        my $d = Serai::Driver->new(files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1]);
        $d->word;
        my $c = $d->connection;
        $c->raw($bytes);
        ok $c->ended, $name;
        isnt $d->ended, 0;
        like $d->log, qr/the proxy sent a frame out of turn/;
    }
};

done_testing;
