# The zygote end to end, as root: what a site's process is, what it cannot do,
# and what the zygote says.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use Socket;
use Test::More;
use Serai::Root;
$SIG{INT} = $SIG{TERM} = sub { exit 1 };

my $APP = <<'APP';
use strict;
my %do = (
    status => sub { open my $f, '<', '/proc/self/status' or return "no: $!"; join '', <$f> },
    cgroup => sub { open my $f, '<', '/proc/self/cgroup'; join '', <$f> },
    env => sub { join "\n", map { "$_=$ENV{$_}" } sort keys %ENV },
    fds => sub { opendir my $d, '/proc/self/fd'; join ' ', sort { $a <=> $b } grep { /\d/ } readdir $d },
    reopen => sub {
        join ' ', map { open my $f, '<', '/dev/null'; my $n = fileno $f; close $f; -e "/proc/self/fd/$n" ? "left $n" : 'closed' } 1 .. 3;
    },
    limits => sub { open my $f, '<', '/proc/self/limits'; join '', grep { /open files|core/ } <$f> },
    tmp => sub { open my $f, '>', '/tmp/x' or return "no: $!"; open my $g, '>', '/dev/shm/x' or return "no: $!"; join ' ', glob('/tmp/* /dev/shm/*') },
    mounts => sub { open my $f, '<', '/proc/self/mounts'; join '', grep { m{ (/tmp|/dev/shm) } } <$f> },
    umask => sub { sprintf '%03o', umask }, pid => sub { $$ }, session => sub { getpgrp() == $$ || getpgrp() == getppid() ? 'own' : 'other' },
    rand => sub { rand }, title => sub { open my $f, '<', '/proc/self/cmdline'; readline $f },
    dumpable => sub { open my $f, '<', '/proc/self/environ' or return "no: $!"; 'yes' },
    setuid => sub { my @r; for my $u (0, 1900004099, 1900004001, 1900004002) { push @r, syscall(117, $u, $u, $u) == -1 ? 'no' : "YES $u" } "@r" },
    unshare => sub { my @r; for my $f (0x10000000, 0x20000) { push @r, syscall(272, $f) == -1 ? 'no' : 'YES' } "@r" },
    mount => sub { my ($n, $d, $t) = ('none', '/mnt', 'tmpfs'); syscall(165, $n, $d, $t, 0, 0) == -1 ? 'no' : 'YES' },
    kill => sub { my ($zygote) = $_[0]{QUERY_STRING}; (kill(0 => $zygote) ? 'YES' : 'no') . ' ' . (open(my $f, '<', "/proc/$zygote/environ") ? 'YES' : 'no') },
    abstract => sub { require Socket; socket my $s, 1, 1, 0; connect($s, Socket::pack_sockaddr_un("\0serai-test-f")) ? 'YES' : "no" },
    neighbour => sub { open(my $f, '<', $_[0]{QUERY_STRING}) ? 'YES' : 'no' },
    suid => sub { `/usr/bin/su -c id 2>&1` =~ /uid=0/ ? 'YES' : 'no' },
    merge => sub { syscall((POSIX::uname())[4] eq 'aarch64' ? 167 : 157, 68, 0, 0, 0, 0) },
    inc => sub { $INC{'Text/Wrap.pm'} ? 'preloaded' : 'not' },
    semaphore => sub { my $q = semget(0x5e7a1, 1, 0777 | 01000); defined $q ? 'made' : "no: $!" },
    system => sub { `echo from a program` },
    memory => sub {
        open my $maps, '<', '/proc/self/maps' or return "no: $!";
        open my $mem, '<:raw', '/proc/self/mem' or return "no: $!";
        my $like = $_[0]{QUERY_STRING};
        my ($n, $seen) = (0, '');
        while (<$maps>) {
            /^(\w+)-(\w+) rw.*(?:\[heap\]|\s0\s*)$/ or next;
            my $left = hex($2) - hex $1;
            sysseek $mem, hex $1, 0;
            while ($left > 0 && sysread $mem, my $part, $left > 65536 ? 65536 : $left) { $left -= length $part; $n += length $part; $seen .= $1 if $part =~ /($like)/ }
        }
        $n < 1 << 20 ? "only $n bytes" : length $seen ? "YES $seen" : 'no';
    },
);
sub { my $e = shift; [200, [], [$do{ substr $e->{PATH_INFO}, 1 }->($e)]] };
APP

my $r = Serai::Root->new(qw(Text::Wrap Not::There Serai::Broken));
my @answer = $r->answer;
is_deeply \@answer, [op => 'up', missing => 'Not::There', missing => 'Serai::Broken'], 'up, and what is missing' or diag $r->zlog;

subtest 'the zygote itself' => sub {
    open my $f, '<', "/proc/$r->{zygote}/status" or die;
    my %is = map { /^(\w+):\s*(.*)/ } <$f>;
    is $is{Uid}, join("\t", (Serai::Root::LAST) x 4), 'is of the reserved uid';
    is $is{Groups} =~ s/\s//gr, '', 'has no groups';
    my $fds = sub { opendir my $d, "/proc/$r->{zygote}/fd"; join ' ', sort grep { /\d/ } readdir $d };
    my $until = time + $Serai::Driver::DEADLINE;    # it closes the copy that it has answered by
    select undef, undef, undef, 0.005 while $fds->() ne '0 1 2 3 4' && time < $until;
    is $fds->(), '0 1 2 3 4', 'holds its control socket, the pipe of the next site, and nothing else';
    open $f, '<', "/proc/$r->{zygote}/cmdline";
    like readline $f, qr/^serai zygote standard\0*$/, 'has a title';
};

subtest 'the next site, before its order' => sub {
    my %is;
    my $until = time + $Serai::Driver::DEADLINE;
    while (time < $until) {
        my ($pid) = $r->children or next;
        open my $f, '<', "/proc/$pid/status" or next;
        %is = map { /^(\w+):\s*(.*?)\s*$/ ? ($1, $2) : () } <$f>;
        last if $is{Seccomp};
        select undef, undef, undef, 0.005;
    }
    is $is{Seccomp}, 2, 'has the seccomp program';
    is $is{NoNewPrivs}, 1, 'and no_new_privs';
    like $is{$_}, qr/^0+$/, $_ for qw(CapBnd CapAmb);
    my ($pid) = $r->children;
    isnt readlink "/proc/$pid/ns/$_", readlink "/proc/$r->{zygote}/ns/$_", "own $_ namespace" for qw(mnt ipc);
    open my $f, '<', "/proc/$pid/cmdline";
    like readline $f, qr/^serai zygote standard: the next site\0*$/, 'title';
};

socket my $abstract, AF_UNIX, SOCK_STREAM, 0;
bind $abstract, Socket::pack_sockaddr_un("\0serai-test-f") or die "$!";
listen $abstract, 5;
my $landlock = Serai::Sys::try('landlock_create_ruleset', 0, 0, 1);

for my $exec (0, 1) {
    subtest $exec ? 'a site in a fresh perl' : 'a site of the zygote' => sub {
        my $d = $r->site(n => 1, exec => $exec, files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1, env => 'MODE=test']);
        my $uid = $d->{uid};
        is $d->word, 'up', 'up' or diag $r->zlog, $d->log;
        is $d->word, 'ready', 'ready' or diag $d->log;
        my $get = sub ($what, $query = '') { $d->request(PATH_INFO => "/$what", QUERY_STRING => $query)->{body} };
        my %is = map { /^(\w+):\s*(.*?)\s*$/ ? ($1, $2) : () } split /\n/, $get->('status');
        is $is{Uid}, join("\t", ($uid) x 4), 'uid';
        is $is{Gid}, join("\t", ($uid) x 4), 'gid';
        is $is{Groups}, $uid, 'groups';
        like $is{$_}, qr/^0+$/, $_ for qw(CapInh CapPrm CapEff CapBnd CapAmb);
        is $is{NoNewPrivs}, 1, 'no_new_privs';
        is $is{Seccomp}, 2, 'seccomp';
        is $is{THP_enabled}, 0, 'small pages';
        my $name = Serai::Root::NAME . "-$$";
        is +(() = $get->('cgroup') =~ /:\/\Q$name\E$/mg), scalar @{ $r->{cgroups} }, 'in the cgroups';
        is $get->('env'), join("\n", "HOME=$d->{home}", 'LANG=C.UTF-8', 'LOGNAME=a1', 'MODE=test', 'PATH=/usr/local/bin:/usr/bin:/bin', 'PLACK_ENV=deployment', 'USER=a1'), 'environment';
        like $get->('fds'), qr/^0 1 2 3 4 5 6(?: \d)?$|^0 1 2 3 4 5 7 \d$/, 'descriptors: standard ones, listener, status, log, connection' or diag $get->('fds');
        is $get->('reopen'), 'closed closed closed', 'a handle that is closed is closed';
        like $get->('limits'), qr/core file size\s+0\s+0.*open files\s+1024\s+4096/s, 'limits';
        is $get->('tmp'), '/tmp/x /dev/shm/x', 'own /tmp and /dev/shm';
        ok !-e '/dev/shm/x', 'not the machine\'s';
        is +(() = $get->('mounts') =~ /tmpfs.*nosuid,nodev/g), 2, 'which are tmpfs, nosuid, nodev';
        is $get->('umask'), '022', 'umask';
        is $get->('dumpable'), 'yes', '/proc/self is its own';
        is $get->('setuid'), 'no no no no' =~ s/no no no no/no no YES 1900004001 no/r, 'no other uid';
        is $get->('unshare'), 'no no', 'no namespaces';
        is $get->('mount'), 'no', 'no mounts';
        is $get->('kill', $r->{zygote}), 'no no', 'the zygote is out of reach';
        is $get->('abstract'), 'no', 'no abstract socket of others' if $landlock >= 6;
        is $get->('suid'), 'no', 'SUID is dead';
        is $get->('inc'), $exec ? 'not' : 'preloaded', 'modules of the set';
        is $get->('semaphore'), 'made', 'own SysV IPC';
        is $get->('system'), "from a program\n", 'starts programs';
        like $get->('title'), qr{^serai a1/shop\0*$}, 'title';
        $d->{one}->quit;
        ok $d->{one}->ended, 'quits';
    };
}
ok !defined semget(0x5e7a1, 1, 0), 'the semaphore was not the machine\'s';

subtest 'two tenants' => sub {
    my @d = map { $r->site(n => $_, files => { 'app.psgi' => $APP, secret => 'x' }, block => [app => 'app.psgi', max => 2]) } 1, 2;
    for my $d (@d) { is $d->word, 'up'; is $d->word, 'ready' or diag $d->log }
    is $d[1]->request(PATH_INFO => '/neighbour', QUERY_STRING => "$d[0]{home}/site/secret")->{body}, 'no', 'no way into the other\'s home';
    isnt $d[0]->request(PATH_INFO => '/rand')->{body}, $d[1]->request(PATH_INFO => '/rand')->{body}, 'seeds differ';
    my $pid = $d[0]->request(PATH_INFO => '/pid')->{body};
    is $d[1]->request(PATH_INFO => '/kill', QUERY_STRING => $pid)->{body}, 'no no', 'nor to its processes';
    like $d[0]->request(PATH_INFO => '/title')->{body}, qr{^serai a1/shop worker\0*$};
    $_->{one}->quit for @d;
    ok $_->{one}->ended for @d;

    my $first = $r->site(n => 1, files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1, env => 'PASSWORD=' . '-' x 3000 . 'of the first']);
    my $second = $r->site(n => 2, files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1]);
    for my $d ($first, $second) { is $d->word, 'up'; is $d->word, 'ready' or diag $d->log }
    like $first->request(PATH_INFO => '/memory', QUERY_STRING => '-of \\w+ first')->{body}, qr/^YES/, 'a secret is in the memory of its site';
    is $second->request(PATH_INFO => '/memory', QUERY_STRING => '-of \\w+ first')->{body}, 'no', 'and in no other\'s';
    $_->{one}->quit for $first, $second;
};

# Kernels before 6.4 know nothing of it.
my $merges = Serai::Sys::try('prctl', 68, 0, 0, 0, 0) != -1;
subtest 'same pages' => sub {
    my @d = map { $r->site(n => 7 + $_, merge => $_, files => { 'app.psgi' => $APP }, block => [app => 'app.psgi', max => 1]) } 0, 1;
    for my $d (@d) { is $d->word, 'up'; is $d->word, 'ready' or diag $d->log }
    my @is = map { $_->request(PATH_INFO => '/merge')->{body} } @d;
    is $is[0], $merges ? 0 : -1, 'are not merged';
    is $is[1], $merges ? 1 : -1, 'but where the order says so';
    $_->{one}->quit for @d;
};

subtest 'what cannot be started' => sub {
    my $d = $r->site(n => 3, files => { 'app.psgi' => 'die "no"' }, block => [app => 'app.psgi']);
    is $d->word, 'up';
    is $d->word, 'failed app.psgi line 1: no', 'the code';
    $d = $r->site(n => 4, gid => 0, files => { 'app.psgi' => '' }, block => [app => 'app.psgi']);
    like $d->word, qr/^failed the order names uid \d+ and gid 0$/, 'gid 0';
    $d = $r->site(n => 4, gid => 5, files => { 'app.psgi' => '' }, block => [app => 'app.psgi']);
    like $d->word, qr/^failed set\w+: Invalid argument$/, 'a gid outside the map';
    $d = $r->site(n => -5, files => { 'app.psgi' => '' }, block => [app => 'app.psgi']);
    like $d->word, qr/^failed set\w+: Invalid argument$/, 'a uid outside the map';
    $d = $r->site(n => 99, files => { 'app.psgi' => '' }, block => [app => 'app.psgi']);
    like $d->word, qr/^failed could not prove the drop: uid 1900004099 can be taken$/, 'the zygote\'s own uid';
    is $r->site(n => 5, files => { 'app.psgi' => $APP }, block => [app => 'app.psgi'])->word, 'up', 'the zygote lives on';
};

subtest 'the zygote ends, sites live on' => sub {
    my $d = $r->site(n => 6, files => { 'app.psgi' => $APP }, block => [app => 'app.psgi']);
    is $d->word, 'up';
    is $d->word, 'ready';
    my ($next) = $r->children;
    close delete $r->{control};
    waitpid $r->{zygote}, 0;
    is $?, 0, 'end of file: exit';
    my $until = time + $Serai::Driver::DEADLINE;
    select undef, undef, undef, 0.005 while -e "/proc/$next" && time < $until;
    ok !-e "/proc/$next", 'the next site ends too';
    is $d->request(PATH_INFO => '/umask')->{body}, '022', 'the site still serves';
};

subtest 'a zygote that must not come up' => sub {
    for (['no seccomp program', ''], ['half an instruction', 'abc']) {
        my ($name, $program) = @$_;
        local $r->{program} = $program;
        $r->start;
        waitpid $r->{zygote}, 0;
        ok $?, $name;
        like $r->zlog, qr/the seccomp program has \d bytes/;
        close delete $r->{control};
    }
};

undef $r;
done_testing;
