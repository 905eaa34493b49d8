# mallory is a customer like any other, and tries what she can. GET /tries runs
# the table below in order and prints a line for each: "held" or "BROKEN".
# GET /try/NAME runs one.
use strict;
use warnings;
use Errno qw(EPERM EACCES ENOENT);
use Fcntl;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Socket;

my $home  = $ENV{HOME};
my $root  = "$home/app";
my $front = $ENV{FRONT} || '127.0.0.1:8080';                       # the front proxy
my $run   = $ENV{RUN}   || '/run/serai';                           # its run directory
my @dirs  = split /:/, $ENV{DIRS} || '/var/lib/serai:/var/log/serai';

my %who  = map { my @f = split /:/; ($f[0] => { uid => $f[2], home => $f[5] }) } lines('/etc/passwd');
my $me   = (getpwuid $<)[0] // '';
my ($alice) = grep { defined } map { $who{$_} } grep { /alice$/ } sort keys %who;
my ($bob)   = grep { defined } map { $who{$_} } grep { /bob$/ } sort keys %who;
$_ ||= { uid => $< + 1, home => '/nonexistent' } for $alice, $bob;

# What a try returns: held(why), or broken(what was got). A try that dies held
# nothing: it is reported as broken.
sub held   { [ held   => join ' ', @_ ] }
sub broken { [ BROKEN => join ' ', @_ ] }
sub lines  { open my $f, '<', $_[0] or return; local $/ = "\n"; map { chomp; $_ } <$f> }
sub denied { my ($what, $ok) = @_; $ok ? broken($what) : held("$what: $!") }

sub opens    { my ($mode, $path) = @_; my $ok = open(my $f, $mode, $path); denied("open $path", $ok) }
sub pids     { opendir my $d, '/proc' or return; grep { /^\d+$/ } readdir $d }
sub mine     { my @s = stat "/proc/$_[0]"; @s && $s[4] == $< }
sub others   { grep { $_ != $$ && !mine($_) } 1 .. 32768, pids() }
sub sysnum   { my %n = @_; (POSIX::uname())[4] eq 'aarch64' ? $n{arm} : $n{x86} }
sub unixsock { my $p = shift; my $s = IO::Socket::UNIX->new(Peer => $p); denied("connect $p", $s) }

# Where no answer comes at all, a try proves nothing: that counts as broken.
sub refused {
    my ($what, $status, @fine) = @_;
    return (grep { $_ eq $status } @fine) ? held("$what: $status") : broken("$what: $status");
}

# a request to the front proxy, as any client on this machine could make it
sub fetch {
    my ($host, $path, %o) = @_;
    my $s = IO::Socket::INET->new(PeerAddr => $front, Timeout => 5) or return "no connection: $!";
    my $body = $o{body} // '';
    print $s "@{[$o{method} // 'GET']} $path HTTP/1.1\r\nHost: $host\r\nConnection: close\r\n"
        . ($body ne '' ? "Content-Length: " . length($body) . "\r\n" : '')
        . join('', map { "$_\r\n" } @{ $o{headers} || [] }) . "\r\n$body";
    local $SIG{ALRM} = sub { die "no answer within 5 s\n" };
    alarm 5;
    my $r = eval { local $/; <$s> } // "none: $@";
    alarm 0;
    return $r;
}
sub status { $_[0] =~ m{^HTTP/1\.\d (\d+)} ? $1 : "no status: " . substr $_[0], 0, 60 }

# a request to Serai's own API
sub api {
    my ($method, $path, $json) = @_;
    my $s = IO::Socket::UNIX->new(Peer => "$run/api.sock") or return "connect: $!";
    $json //= '';
    print $s "$method $path HTTP/1.1\r\nHost: serai\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: "
        . length($json) . "\r\n\r\n$json";
    local $/;
    return <$s> // "closed: $!";
}
sub api_refused {
    return refused("$_[0] $_[1]", status(api(@_)), 401, 403, 404, 422);
}

# in a process of its own, which may die of it
sub child {
    my $try = shift;
    pipe my $r, my $w or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        close $r;
        my $x = eval { $try->() } || [ died => $@ ];
        syswrite $w, join ' ', @$x;
        POSIX::_exit(0);
    }
    close $w;
    my $said = do { local $/; <$r> };
    waitpid $pid, 0;
    return ($said, $?);
}

# a link or FIFO beneath her own static files, fetched through the proxy
sub planted {
    my ($name, $plant, $secret) = @_;
    my $p = "$root/public/$name";
    unlink $p;
    $plant->($p) or return held("plant $name: $!");
    my $r = fetch('mallory.localhost', "/static/$name");
    unlink $p;
    return refused("GET /static/$name", status($r), 403, 404);
}

my @tries = (
    # files
    [ 'alice-home-list'   => sub { my $ok = opendir(my $d, $alice->{home}); denied("list $alice->{home}", $ok) } ],
    [ 'alice-file-read'   => sub { opens('<', "$alice->{home}/app/app.psgi") } ],
    [ 'alice-file-write'  => sub { opens('>>', "$alice->{home}/app/app.psgi") } ],
    [ 'bob-book-read'     => sub { opens('<', "$bob->{home}/site/cgi-bin/guestbook.txt") } ],
    [ 'shadow-read'       => sub { opens('<', '/etc/shadow') } ],
    [ 'database-read'     => sub {
        my @got = grep { -e "$_/state/serai.db" || (opendir my $d, "$_/state") } @dirs;
        @got ? broken("see @got") : held("of @dirs nothing is to be seen");
    } ],
    [ 'logs-read' => sub {
        my @got = map { my $d = $_; grep { open my $f, '<', $_ } glob "$d/{sites,access}/*/*" } @dirs;
        @got ? broken("read @got") : held('no log of others is to be seen');
    } ],
    [ 'device-kmsg'  => sub { my @r = map { opens('<', $_) } qw(/dev/kmsg /dev/mem /dev/vda /dev/sda); (grep { $_->[0] ne 'held' } @r)[0] || $r[0] } ],
    [ 'cgroup-write' => sub {
        my @got = grep { sysopen my $f, $_, O_WRONLY } map { glob "$_/{cgroup.procs,memory.max,memory.limit_in_bytes,pids.max}" }
            map { "/sys/fs/cgroup$_" } '', '/memory', '/pids', '/unified', map { (split /:/, $_, 3)[2] // () } lines('/proc/self/cgroup');
        @got ? broken("may write @got") : held('no cgroup file opens for writing');
    } ],

    # static files that are none
    [ 'files-link-passwd' => sub { planted('shadow.txt', sub { symlink '/etc/passwd', $_[0] }) } ],
    [ 'files-link-alice'  => sub { planted('alice.txt', sub { symlink "$alice->{home}/app/app.psgi", $_[0] }) } ],
    [ 'files-link-dots'   => sub { planted('up.txt', sub { symlink '../../../../etc/passwd', $_[0] }) } ],
    [ 'files-link-proc'   => sub { planted('root', sub { symlink '/proc/self/root/etc/passwd', $_[0] }) } ],
    [ 'files-fifo'        => sub { planted('fifo', sub { POSIX::mkfifo($_[0], 0666) }) } ],
    [ 'files-socket'      => sub { planted('sock', sub { IO::Socket::UNIX->new(Local => $_[0], Listen => 1) }) } ],
    [ 'files-dots'        => sub { refused('GET /static/../../..', status(fetch('mallory.localhost', '/static/../../../../etc/passwd')), 400, 403, 404) } ],

    # processes
    [ 'processes-seen' => sub { my @o = grep { !mine($_) } pids(); @o ? broken("see pids @o[0 .. ($#o > 9 ? 9 : $#o)]") : held('only her own processes are in /proc') } ],
    [ 'environ-read'   => sub { my @o = grep { open my $f, '<', "/proc/$_/environ" } others(); @o ? broken("read environ of @o") : held('no environment of others opens') } ],
    [ 'cmdline-read'   => sub { my @o = grep { length join '', lines("/proc/$_/cmdline") } others(); @o ? broken("read arguments of @o") : held('no arguments of others are to be read') } ],
    [ 'signal'         => sub { my @o = grep { kill 0, $_ } grep { $_ > 1 } others(); @o ? broken("may signal @o") : held('kill answers for nobody else') } ],
    [ 'ptrace'         => sub { my $n = sysnum(x86 => 101, arm => 117); denied('ptrace', syscall($n, 16, getppid(), 0, 0) == 0) } ],
    [ 'process-vm'     => sub { my $n = sysnum(x86 => 310, arm => 270); denied('process_vm_readv', syscall($n, getppid(), 0, 0, 0, 0, 0) != -1) } ],
    [ 'parent-mem'     => sub { opens('<', '/proc/1/mem') } ],

    # to be somebody else
    [ 'setuid-root'  => sub { POSIX::setuid(0); $< == 0 || $> == 0 ? broken('is root') : held("setuid 0: $!") } ],
    [ 'setuid-alice' => sub { my $r = syscall(sysnum(x86 => 117, arm => 147), (0 + $alice->{uid}) x 3); denied("setresuid $alice->{uid}", $r == 0) } ],
    [ 'suid-program' => sub {
        my $out = join ' ', map { `$_ 2>&1 </dev/null` } "su -c id", "mount -t tmpfs none /tmp", "newgrp root -c id";
        $out =~ /uid=0|euid=0/ ? broken($out) : held('su, mount and newgrp get nothing');
    } ],
    [ 'user-namespace' => sub { denied('unshare user', syscall(sysnum(x86 => 272, arm => 97), 0x10000000) == 0) } ],
    [ 'mount'          => sub { my ($a, $b, $c) = ("none\0", "/tmp\0", "tmpfs\0"); denied('mount', syscall(sysnum(x86 => 165, arm => 40), $a, $b, $c, 0, 0) == 0) } ],
    [ 'join-init'      => sub { open my $f, '<', '/proc/1/ns/mnt' or return held("open /proc/1/ns/mnt: $!"); denied('setns', syscall(sysnum(x86 => 308, arm => 268), fileno $f, 0) == 0) } ],
    [ 'bpf'            => sub { my $b = "\0" x 128; denied('bpf', syscall(sysnum(x86 => 321, arm => 280), 0, $b, 128) >= 0) } ],
    [ 'mknod'          => sub { my $o = `mknod $root/disk b 254 0 2>&1`; my $ok = -e "$root/disk"; unlink "$root/disk"; $ok ? broken('has a disk') : held($o) } ],
    [ 'cron'           => sub { my $o = `echo '* * * * * id' | crontab - 2>&1`; $? == 0 ? broken('has a crontab') : held(((split /\n/, $o)[0] // 'crontab: none') ) } ],
    [ 'environment'    => sub { my @k = grep { !/^(?:PATH|HOME|USER|LOGNAME|LANG|SHELL|TMPDIR|FRONT|RUN|DIRS|PWD|SHLVL|PLACK_ENV|OLDPWD|_)$/ } keys %ENV; @k ? broken("environment has @k") : held('nothing of the operator is in the environment') } ],
    [ 'descriptors'    => sub {
        opendir my $d, '/proc/self/fd' or return held("list descriptors: $!");
        my @o = grep { !/^(?:\/dev\/null|pipe:|socket:|\/proc\/\d+\/fd|\Q$home\E|\/tmp\/|\/proc$|anon_inode:)/ } map { readlink("/proc/self/fd/$_") // () } grep { /^\d+$/ } readdir $d;
        @o ? broken("inherited @o") : held('no descriptor of others is open');
    } ],

    # sockets
    [ 'sites-sockets'  => sub { my @s = grep { IO::Socket::UNIX->new(Peer => $_) } map { "$run/sites/$_.sock" } 1 .. 50; @s ? broken("connected to @s") : held("no socket beneath $run/sites answers: $!") } ],
    [ 'proxy-socket'   => sub { unixsock("$run/proxy.sock") } ],
    [ 'abstract'       => sub {
        my @names = map { /\s(\@\S+)$/ ? $1 : () } lines('/proc/net/unix');
        my @got   = grep { my $n = $_; $n =~ s/^@/\0/; my $s = IO::Socket->new; $s->socket(AF_UNIX, SOCK_STREAM, 0) && connect($s, pack_sockaddr_un($n)) } @names;
        @got ? broken("connected to @got") : held(scalar(@names) . ' abstract names seen, none answers');
    } ],
    [ 'port-80'   => sub { my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 80, Listen => 1, ReuseAddr => 1); denied('listen on port 80', $s) } ],
    [ 'port-front' => sub { my ($h, $p) = split /:/, $front; my $s = IO::Socket::INET->new(LocalAddr => $h, LocalPort => $p, Listen => 1, ReuseAddr => 1, ReusePort => 1); denied("listen on $front", $s) } ],
    [ 'raw-socket' => sub { denied('raw socket', socket(my $s, AF_INET, SOCK_RAW, 1)) } ],
    [ 'packet-socket' => sub { denied('packet socket', socket(my $s, 17, SOCK_RAW, 0)) } ],

    # memory that is shared
    [ 'dev-shm' => sub { opendir my $d, '/dev/shm' or return held("$!"); my @o = grep { !/^\./ && (stat "/dev/shm/$_")[4] != $< } readdir $d; @o ? broken("see @o") : held('/dev/shm is her own') } ],
    [ 'tmp'     => sub { opendir my $d, '/tmp' or return held("$!"); my @o = grep { !/^\.\.?$/ && (lstat "/tmp/$_")[4] != $< } readdir $d; @o ? broken("see @o") : held('/tmp is her own') } ],
    [ 'sysv'    => sub { my @o = grep { !/^\s*key/ } map { lines("/proc/sysvipc/$_") } qw(shm sem msg); @o ? broken("see @o") : held('no SysV memory, semaphore or queue of others exists') } ],

    # Serai itself
    [ 'api-tenants' => sub { api_refused(GET => '/v1/tenants/alice') } ],
    [ 'api-site'    => sub { api_refused(GET => '/v1/tenants/alice/sites/app') } ],
    [ 'api-stop'    => sub { api_refused(POST => '/v1/tenants/alice/sites/app/stop') } ],
    [ 'api-claim'   => sub {
        my $y = 'kind: Site\nmetadata: {name: thief, tenant: mallory}\nspec: {hosts: [app.alice.localhost], root: app, engine: perl, perl: {app: app.psgi}}\n';
        api_refused(POST => '/v1/apply', qq({"files":[{"name":"thief.yaml","text":"$y"}]}));
    } ],
    [ 'forwarded'   => sub {
        my $r = fetch('mallory.localhost', '/echo', headers => [ 'X-Forwarded-For: 6.6.6.6', 'X-Forwarded-Host: app.alice.localhost', 'Forwarded: for=6.6.6.6', 'X-Real-IP: 6.6.6.6', 'Proxy: evil' ]);
        $r =~ /6\.6\.6\.6|app\.alice|evil/ ? broken("the worker saw $r") : refused('GET /echo, and what a client forges does not arrive', status($r), 200);
    } ],
    [ 'smuggle'     => sub {
        my $r = fetch('mallory.localhost', '/echo', method => 'POST', headers => ['Transfer-Encoding: chunked'], body => "0\r\n\r\nGET /x HTTP/1.1\r\nHost: app.alice.localhost\r\n\r\n");
        my @n = $r =~ /^HTTP\/1/mg;
        @n > 1 ? broken('two replies to one request') : refused('POST with two lengths, one reply', status($r), 200, 400);
    } ],

    # more than the plan grants
    [ 'memory'    => sub {
        my ($said, $st) = child(sub { my @a; push @a, 'x' x 1_048_576 for 1 .. 2048; broken('has 2 GiB') });
        $said ? broken($said) : held("the hog was ended with signal " . ($st & 127));
    } ],
    [ 'processes' => sub {
        my ($said) = child(sub {
            my @p;
            for (1 .. 2000) { my $p = fork; last if !defined $p; if (!$p) { select undef, undef, undef, 5; POSIX::_exit(0) } push @p, $p }
            my $why = "$!";
            kill KILL => @p; waitpid $_, 0 for @p;
            @p >= 1000 ? broken(@p . ' processes') : held('after ' . @p . " processes: $why");
        });
        $said =~ /^held (.*)/ ? held($1) : broken($said);
    } ],
    [ 'niceness' => sub { denied('nice -20', POSIX::nice(-20)) } ],
);
my %try = map { $_->[0] => $_->[1] } @tries;

# What she does to herself, or to whoever talks to her: no reply of hers tells
# whether it held, so others look.
my %harm = (
    # every process she may signal
    'kill-all' => sub { my $p = fork; if (defined $p && !$p) { kill KILL => -1; POSIX::_exit(0) } select undef, undef, undef, 10 },
    # the listener of her own site, for good
    'shutdown' => sub { eachsocket(sub { my $s = shift; getsockopt($s, SOL_SOCKET, 30) && shutdown $s, 2 if unpack 'i', getsockopt($s, SOL_SOCKET, 30) // pack 'i', 0 }) },
    # more shared memory than her plan has
    'shared-memory' => sub { open my $f, '>', '/dev/shm/hog' or die; my $m = 'x' x 1_048_576; for (1 .. 2048) { syswrite $f, $m or last } unlink '/dev/shm/hog' },
    # frames that are none, to the proxy
    'garbage'  => sub { eachsocket(sub { syswrite $_[0], "\xff\xff\xff\xffWgarbage" x 1000 }) },
    'split'    => sub { my $f = pack('N/a*', '') ; my $h = pack '(n/a*)*', 200, 'X-A', "b\r\nSet-Cookie: stolen=1"; eachsocket(sub { syswrite $_[0], pack('NaCN', 5 + length $h, 'W', 0, length $h) . $h }) },
    'endless'  => sub { my $d = pack('Na', 65536, 'd') . 'x' x 65536; my $h = pack '(n/a*)*', 200; eachsocket(sub { my $s = $_[0]; syswrite $s, pack('Na', length $h, 'h') . $h; 1 while syswrite $s, $d }) },
    'lie'      => sub { my $h = pack '(n/a*)*', 200, 'Content-Length', 3; eachsocket(sub { syswrite $_[0], pack('NaCN', 5 + length($h) + 100, 'W', 0, length $h) . $h . "abcHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstole" . 'x' x 54 }) },
);
sub eachsocket {
    my $do = shift;
    for my $fd (3 .. 63) {
        next unless (readlink("/proc/self/fd/$fd") // '') =~ /^socket:/;
        open my $s, '+<&=', $fd or next;
        $do->($s);
        POSIX::dup2($fd, $fd);
    }
}

sub {
    my $env  = shift;
    my $path = $env->{PATH_INFO};
    my $text = sub { [ $_[0], [ 'Content-Type', 'text/plain; charset=utf-8' ], [ $_[1] ] ] };
    if ($path eq '/echo') {
        return $text->(200, join '', map { "$_: $env->{$_}\n" } grep { /^(?:HTTP_|REMOTE|SERVER|REQUEST_METHOD|CONTENT)/ && $_ ne 'HTTP_HOST' } sort keys %$env);
    }
    if ($path =~ m{^/harm/([\w-]+)$} && $harm{$1}) {
        $harm{$1}->();
        return $text->(200, "$1: done\n");
    }
    my @run = $path eq '/tries' ? @tries : $path =~ m{^/try/([\w-]+)$} && $try{$1} ? [ $1, $try{$1} ] : ();
    return $text->(404, "nothing here\n") if $path ne '/' && !@run;
    return $text->(200, "GET /tries, /try/NAME, /harm/NAME\n" . join('', map { "  $_->[0]\n" } @tries) . join('', map { "  harm/$_\n" } sort keys %harm)) if !@run;
    return sub {
        my $w = shift->([ 200, [ 'Content-Type', 'text/plain; charset=utf-8' ] ]);
        my $broken = 0;
        for (@run) {
            my ($name, $try) = @$_;
            my $r = eval { $try->() } || broken("died: $@");
            $broken++ if $r->[0] ne 'held';
            $w->write(sprintf "%-6s %-18s %s\n", $r->[0], $name, $r->[1] =~ s/\s+/ /gr);
        }
        $w->write(sprintf "%d tries, %d broken\n", scalar @run, $broken);
        $w->close;
    };
};
