# CGI scripts, compiled once, run ten times each in one worker: the tenth reply
# is as the first.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use Test::More;
use Serai::CGI;
use Serai::Driver;

my $P = "#!/usr/bin/perl\n";
my $T = 'print "Content-Type: text/plain\n\n";' . "\n";
my $page = qr/\A500 Internal Server Error\n/;

# name, source, then: as (way it runs), status, body, header, env, path, log,
# first (the first of ten may differ, the next are alike)
my @table = (
    ['hello', "${P}use strict; use warnings; $T print qq(hello\\n);", body => "hello\n"],
    ['no-strict', "$P$T \$x = 5; print \$x;", body => '5'],
    ['counter of a global', "$P$T \$n++; print \$n;", body => '1'],
    ['counter of our', "${P}use strict; our \$n; $T print ++\$n;", body => '1'],
    ['counter of use vars', "${P}use strict; use vars qw(\$n \@l \%h); $T push \@l, ++\$n; \$h{\$n} = 1; print scalar(\@l), scalar(keys %h), \$n;", body => '111'],
    ['a value of BEGIN stays', "${P}our \$n; BEGIN { \$n = 7 } $T print \$n++;", body => '7'],
    ['an array of BEGIN stays', "${P}our \@l; BEGIN { \@l = (1, 2) } $T push \@l, 3; print \"\@l\";", body => '1 2 3'],
    ['constants', "${P}use constant { A => 3, L => [1, 2] }; $T print A, \"\@{+L}\";", body => '31 2'],
    ['subs', "${P}$T say_it('x'); sub say_it { print \"<\$_[0]>\" }", body => '<x>'],
    ['sub with a my of the file', "${P}my \$q = \$ENV{QUERY_STRING}; $T show(); sub show { print \$q; \$q .= 'x' }", body => 'a=1', env => { QUERY_STRING => 'a=1' }],
    ['sub with a my of a list', "${P}my (\$p, \$q) = (1, \$ENV{QUERY_STRING}); $T show(); sub show { print \$p++, \$q; \$q .= 'x' }", body => '1a=1', env => { QUERY_STRING => 'a=1' }],
    ['sub with a my of a block', "$P$T { my \$n = 1; sub show { print ++\$n } } show();", body => '2', as => 'forked'],
    ['sub with a my of the same name', "${P}my \$n = 5; $T sub show { my \$n = shift; \$n++; print \$n } sub other { print \$n++ } show(1); show(2); other();", body => '235'],
    ['anonymous sub with a my', "${P}my \$q = 1; my \$f = sub { \$q++ }; \$f->(); $T print \$q;", body => '2'],
    ['sub with our', "${P}our \$q = \$ENV{QUERY_STRING}; $T show(); sub show { print \$q; \$q .= 'x' }", body => 'a=1', env => { QUERY_STRING => 'a=1' }],
    ['state', "${P}use feature 'state'; sub n { state \$n = 0; ++\$n } $T print n();", body => qr/^\d+$/, differs => 1],
    ['exit', "$P$T print 'a'; exit; print 'b';", body => 'a'],
    ['exit in eval', "$P$T print 'a'; eval { exit 0 }; print 'b';", body => 'a'],
    ['exit in a sub in eval', "$P$T sub bye { eval { exit(1) }; print 'no' } bye(); print 'b';", body => ''],
    ['exit in a sort', "$P$T my \@x = sort { exit } 2, 1; print 'b';", body => ''],
    ['exit in a module', "${P}use lib 'lib'; use Bye; $T Bye::bye(); print 'b';", body => ''],
    ['exit in a loop', "$P$T for (1 .. 3) { print; exit if \$_ == 2 } print 'b';", body => '12'],
    ['die before output', "${P}die \"no database\\n\";", status => 500, body => $page, log => qr/request r1: cgi-bin\/die_before_output\.cgi died: no database/],
    ['die after output', "$P$T print 'part'; die \"later\\n\";", body => 'part', log => qr/died: later/],
    ['die object', "${P}die { a => 1 };", status => 500, body => $page],
    ['die in eval', "$P$T eval { die \"x\\n\" }; print \"got \$@\";", body => "got x\n"],
    ['__DIE__ handler', "$P\$SIG{__DIE__} = sub { print \"Status: 503\\nContent-Type: text/plain\\n\\nsorry \$_[0]\"; exit }; die \"x\\n\";", status => 503, body => "sorry x\n"],
    ['warn', "$P$T warn 'careful'; print 'ok';", body => 'ok', log => qr/^careful at \S+warn\.cgi line \d\.$/m],
    ['-w', "#!/usr/bin/perl -w\n$T my \$x; my \$y = \"a\$x\"; print \$^W;", body => '1', log => qr/uninitialized value \$x/],
    ['-T', "#!/usr/bin/perl -T\n$T print \${^TAINT};", body => '1', as => 'exec', x => 1],
    ['-T not executable', "#!/usr/bin/perl -T\n$T print \${^TAINT};", body => '1', as => 'exec'],
    ['sh not executable', "#!/bin/sh\necho", status => 500, body => $page, log => qr/no Perl program, so it must be executable: chmod \+x cgi-bin/],
    ['DATA', "$P$T print while <DATA>;\n__DATA__\nl1\nl2\n", body => "l1\nl2\n"],
    ['END', "$P$T print while <DATA>;\n__END__\nl1\n}{\n", body => "l1\n}{\n"],
    ['pod to the end', "$P$T print 'ok';\n\n=head1 NAME\n\nx }\n", body => 'ok'],
    ['pod within', "$P$T\n\n=pod\n\nexit fork exec }\n\n=cut\n\nprint 'ok';", body => 'ok'],
    ['no newline at the end', "$P$T print 'ok' # comment", body => 'ok'],
    ['here document', "$P$T print <<X;\nhere\nX\n", body => "here\n"],
    ['here document last', "$P$T print <<X;\nhere\nX", body => "here\n"],
    ['BEGIN and END', "$P$T END { print 'end' } print 'body ';", body => 'body end'],
    ['END after exit', "$P$T END { print 'end' } print 'body '; exit;", body => 'body end'],
    ['END after die', "$P$T END { print 'end' } print 'body '; die \"x\\n\"", body => 'body end', log => qr/died: x/],
    ['$0', "$P$T print \$0;", body => qr{/site/cgi-bin/_0\.cgi$}],
    ['__FILE__ and __LINE__', "$P$T print __FILE__ =~ m{([^/]+)\$}, ' ', __LINE__;", body => '__FILE___and___LINE__.cgi 3'],
    ['FindBin', "${P}use FindBin; $T print \$FindBin::Bin;", body => qr{/site/cgi-bin$}],
    ['directory', "${P}use Cwd; $T print getcwd;", body => qr{/site/cgi-bin$}],
    ['chdir is undone', "$P chdir '/'; $T print -e 'directory.cgi' ? 'bad' : 'ok';", body => 'ok'],
    ['require of a library', "${P}require './lib.pl'; $T print from_lib(), \$lib_value;", body => 'lib7'],
    ['do of a file', "${P}my \$v = do './conf.pl'; $T print \$v->{a};", body => '1'],
    ['use lib', "${P}use lib 'lib'; use Mod; $T print Mod::f();", body => 'mod'],
    ['@INC is put back', "${P}unshift \@INC, '/nowhere'; $T print scalar grep { \$_ eq '/nowhere' } \@INC;", body => '1'],
    ['ISINDEX', "$P$T print join '|', \@ARGV;", body => 'a|b c', env => { QUERY_STRING => 'a+b%20c' }],
    ['ARGV with a query', "$P$T print scalar \@ARGV;", body => '0', env => { QUERY_STRING => 'a=b' }],
    ['environment', "$P$T print join ',', map { \$ENV{\$_} // '-' } qw(GATEWAY_INTERFACE REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING SERVER_PROTOCOL HTTP_X_A MODE);",
        body => 'CGI/1.1,GET,/cgi-bin/environment.cgi,-,q=1,HTTP/1.1,a,test', env => { QUERY_STRING => 'q=1', HTTP_X_A => 'a' }],
    ['path info', "$P$T print join ',', map { \$ENV{\$_} // '-' } qw(SCRIPT_NAME PATH_INFO);", body => '/cgi-bin/path_info.cgi,/a/b c', path => '/a/b c'],
    ['path translated', "$P$T print \$ENV{PATH_TRANSLATED} eq \"\$ENV{DOCUMENT_ROOT}/x\" ? 'ok' : 'bad';", body => 'ok', path => '/x'],
    ['environment of a program', "$P$T print `echo \\\$QUERY_STRING`;", body => "q=1\n", env => { QUERY_STRING => 'q=1' }],
    ['environment is put back', "$P\$ENV{LEFT}++; $T print \$ENV{LEFT};", body => '1'],
    ['STDIN', "$P$T read STDIN, my \$b, \$ENV{CONTENT_LENGTH}; print \$b;", body => 'a=1&b=2', env => { REQUEST_METHOD => 'POST', BODY => 'a=1&b=2' }],
    ['STDIN by lines', "$P$T print scalar(my \@l = <STDIN>);", body => '2', env => { REQUEST_METHOD => 'POST', BODY => "a\nb\n" }],
    ['STDIN of a program', "$P$T print `cat`;", body => 'to cat', env => { REQUEST_METHOD => 'POST', BODY => 'to cat' }],
    ['STDIN empty', "$P$T print defined(my \$l = <STDIN>) ? 'bad' : 'eof';", body => 'eof'],
    ['STDIN unread', "$P$T print 'ok';", body => 'ok', env => { REQUEST_METHOD => 'POST', BODY => 'unread' }],
    ['STDIN large', "$P$T local \$/; print length <STDIN>;", body => '3000000', env => { REQUEST_METHOD => 'POST', BODY => 'u' x 3_000_000 }],
    ['output of a program', "$P\$| = 0; $T system 'echo', 'program'; print 'after';", body => "program\nafter"],
    ['output of fd 1', "$P { local \$| = 1; $T } open my \$f, '>&=', 1; syswrite \$f, 'raw'; print 'more'", body => 'rawmore'],
    ['pipe from a program', "$P$T open my \$p, '-|', 'echo', 'x'; print <\$p>;", body => "x\n"],
    ['fork', "$P$T \$|=1; my \$p = fork; if (!\$p) { print 'child '; exit 0 } waitpid \$p, 0; print 'parent';", body => 'child parent', as => 'forked'],
    ['exec', "$P\$|=1;\n$T exec 'echo', 'done';", body => "done\n", as => 'forked'],
    ['autoflush', "${P}\$| = 1;\n$T print 'ok';", body => 'ok', as => 'forked'],
    ['nph-x', "${P}print \"HTTP/1.0 202 Fine\\r\\nX-A: 1\\r\\n\\r\\nok\";", status => 202, body => 'ok', as => 'forked'],
    ['caller', "${P}main() unless caller; sub main { $T print 'ok' }", body => 'ok', as => 'exec', x => 1],
    ['shell', "#!/bin/sh\necho Content-Type: text/plain\necho\necho \$QUERY_STRING; cat", body => "q=1\nbody", x => 1, as => 'exec', env => { REQUEST_METHOD => 'POST', QUERY_STRING => 'q=1', BODY => 'body' }],
    ['status', "${P}print \"Status: 404 Gone Away\\nContent-Type: text/plain\\n\\nno\";", status => 404, body => 'no'],
    ['location', "${P}print \"Location: http://x.example/\\n\\n\";", status => 302, body => '', header => { location => 'http://x.example/' }],
    ['location with status', "${P}print \"Status: 301\\nLocation: /y\\n\\n\";", status => 301, body => ''],
    ['CRLF', "${P}print \"Content-Type: text/plain\\r\\nX-A: 1\\r\\n\\r\\nbody\\r\\n\";", body => "body\r\n", header => { 'x-a' => 1 }],
    ['cookies', "${P}print \"Set-Cookie: a=1\\nSet-Cookie: b=2\\nContent-Type: text/plain\\n\\n\";", body => '', headers => ['Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'Content-Type', 'text/plain']],
    ['folded header', "${P}print \"X-A: a\\n b\\n\\n\";", body => '', header => { 'x-a' => 'a b' }],
    ['no head', "${P}print 'just text';", status => 500, body => $page, log => qr/it ended before it had printed a head and a blank line: "just text"/],
    ['nothing', "${P}1;", status => 500, body => $page, log => qr/it ended before/],
    ['blank first', "${P}print \"\\n\\nx\";", status => 500, body => $page, log => qr/begins with a blank line/],
    ['no header', "${P}print \"not a header\\n\\nx\";", status => 500, body => $page, log => qr/a line of its head is no header: "not a header"/],
    ['bad status', "${P}print \"Status: fine\\n\\nx\";", status => 500, body => $page, log => qr/its Status is no number/],
    ['syntax error', "$P$T\nif (1 {\n", status => 500, body => $page, log => qr/request r1: cgi-bin\/syntax_error\.cgi line 4: syntax error/],
    ['missing module', "${P}use Not::There;", status => 500, body => $page, log => qr/cgi-bin\/missing_module\.cgi line 2: the Perl module Not::There is not installed/],
    ['large output', "$P$T print 'x' x 100000 for 1 .. 30;", body => 'x' x 3_000_000],
    ['HEAD', "$P$T print 'x';", body => '', env => { REQUEST_METHOD => 'HEAD' }],
    ['binmode', "${P}binmode STDOUT, ':utf8'; $T print chr 0x263a;", body => "\xe2\x98\xba"],
    ['no binmode', "$P$T print chr 0xe9;", body => "\xe9"],
    ['format', "$P$T our \$v = 'x';\nformat STDOUT =\n<\@<<\n\$v\n.\nwrite;", body => "<x\n"],
    ['select', "$P$T open my \$f, '>', '/dev/null'; select \$f; print 'lost'; select STDOUT; print 'kept'; select \$f;", body => 'kept'],
    ['punctuation', "${P}(\$, , \$\\, \$/) = ('-', '!', undef); $T print 'a', 'b';", body => '!a-b!' =~ s/^!//r, body => qr/a-b!$/],
    ['STDOUT closed', "$P$T print 'x'; close STDOUT;", body => 'x'],
    ['STDERR to STDOUT', "${P}open STDERR, '>&', \\*STDOUT; { local \$| = 1; $T } warn \"w\\n\";", body => "w\n"],
    ['handler is undone', "$P\$SIG{ALRM} = sub { die }; alarm 1; $T print 'ok';", body => 'ok'],
    ['umask is undone', "$P$T printf '%03o', umask; umask 077;", body => '022'],
    ['global handle is closed', "${P}open(LOG, '>>', '../log') or die; print LOG 'x'; $T print -s '../log' || 0;", body => qr/^\d+$/, differs => 1],
    ['package of its own', "${P}package Other; our \$n = 1; package main; $T print \$Other::n;", body => '1'],
    ['CGI.pm', "${P}use strict; use CGI; my \$q = CGI->new; print \$q->header('text/plain'), join ',', map { \"\$_=\" . \$q->param(\$_) } sort \$q->param;", body => 'a=1,b=2',
        env => { REQUEST_METHOD => 'POST', CONTENT_TYPE => 'application/x-www-form-urlencoded', BODY => 'a=1&b=2' }],
    ['CGI.pm function style', "${P}use CGI qw(:standard); print header('text/plain'), param('a') // 'none';", body => '5', env => { QUERY_STRING => 'a=5' }],
    ['CGI.pm cookie', "${P}use CGI; my \$q = CGI->new; print \$q->header(-type => 'text/plain', -cookie => \$q->cookie(-name => 's', -value => 1)), \$q->cookie('s') // 'none';", body => '9',
        header => { 'set-cookie' => 's=1; path=/' }, env => { HTTP_COOKIE => 's=9' }],
    ['CGI.pm upload', "${P}use CGI; my \$q = CGI->new; my \$f = \$q->upload('f'); local \$/; print \$q->header('text/plain'), \$q->param('f'), ':', <\$f>;", body => "n.txt:content\n",
        env => { REQUEST_METHOD => 'POST', CONTENT_TYPE => 'multipart/form-data; boundary=XX', BODY => "--XX\r\nContent-Disposition: form-data; name=\"f\"; filename=\"n.txt\"\r\n\r\ncontent\n\r\n--XX--\r\n" }],
    ['CGI::Carp', "${P}use CGI::Carp 'fatalsToBrowser'; die 'shown to all';", status => 500, body => qr/Software error.*shown to all/s],
    ['CGI::Carp in eval', "${P}use CGI::Carp 'fatalsToBrowser'; eval { die 'hidden' }; $T print 'ok';", body => 'ok'],
    ['without CGI::Carp', "${P}die 'plain';", status => 500, body => $page],
);

my %files = (
    'cgi-bin/lib.pl' => '$lib_value = 7; sub from_lib { "lib" } 1;', 'cgi-bin/conf.pl' => '{ a => 1 }', 'cgi-bin/lib/Mod.pm' => 'package Mod; sub f { "mod" } 1',
    'cgi-bin/lib/Bye.pm' => 'package Bye; sub bye { exit } 1', 'cgi-bin/data.txt' => 'data', 'cgi-bin/.hidden.cgi' => "${P}1", 'cgi-bin/plain' => "$P$T print 'plain';",
    'cgi-bin/sub/deep.cgi' => "$P$T print \$ENV{SCRIPT_NAME};", 'other/x.cgi' => "$P$T print 'other';",
);
sub file ($name) { return $name =~ s/[^A-Za-z0-9_-]/_/gr . '.cgi' }
for (@table) { my ($name, $source, %o) = @$_; $files{ 'cgi-bin/' . file($name) } = ($o{x} ? 'x:' : '') . $source }
my $home = File::Temp::tempdir(CLEANUP => 1);
my $d = Serai::Driver->new(home => $home, files => \%files,
    block => [env => "GITWEB_CONFIG=$home/gitweb.conf", script => "/cgi-bin\0cgi-bin", script => "/cgi-bin/other/\0other", max => 1, idle => 60000, env => 'MODE=test']);
is $d->word, 'ready', 'ready' or diag $d->log;
my $c = $d->connection;

for (@table) {
    my ($name, $source, %o) = @$_;
    my $before = length $d->log;
    my (@bad, $first);
    for my $n (1 .. 10) {
        my $path = '/cgi-bin/' . file($name) . ($o{path} // '');
        my $r = $c->request(PATH_INFO => $path, %{ $o{env} // {} });
        my $status = $o{status} // 200;
        my $ok = ref $status ? ($r->{status} // '') =~ $status : ($r->{status} // '') eq $status;
        $ok &&= ref $o{body} ? $r->{body} =~ $o{body} : $r->{body} eq $o{body};
        $ok &&= ($r->{header}{$_} // '') eq $o{header}{$_} for keys %{ $o{header} // {} };
        $ok &&= "@{ $r->{headers} }" eq "@{ $o{headers} }" if $o{headers};
        $first //= $r->{body};
        $ok &&= $r->{body} eq $first if !$o{differs} && $n < 10;
        push @bad, $n, { %$r, body => substr($r->{body} // '', 0, 300) } if !$ok;
        last if @bad > 2 || !defined $r->{status};
    }
    my $log = substr $d->log, $before;
    my ($why) = $log =~ /runs in a process of its own for each request: (.*)/;
    push @bad, 'log' if $o{log} && $log !~ $o{log};
    push @bad, 'as' if !!$why ne !!$o{as};
    push @bad, 'said more than once' if 1 < (() = $log =~ /runs in a process of its own/g);
    ok !@bad, $name or diag explain \@bad, $log;
}

for (['/cgi-bin/none.cgi', 404], ['/cgi-bin/data.txt', 404], ['/cgi-bin/.hidden.cgi', 404], ['/cgi-bin/../other/x.cgi', 404], ['/cgi-bin/sub', 404], ['/cgi-bin', 404], ['/cgi-bin/', 404],
    ['/', 404], ['', 404], ['/cgi-binx/hello.cgi', 404], ["/cgi-bin/hello.cgi\0x", 404], ['/cgi-bin/lib/Mod.pm', 404],
    ['/cgi-bin/sub/deep.cgi', 200, '/cgi-bin/sub/deep.cgi'], ['/cgi-bin/sub/deep.cgi/more', 200, '/cgi-bin/sub/deep.cgi'], ['/cgi-bin/other/x.cgi', 200, 'other'],
    ['/cgi-bin/plain', 200, 'plain'], ['/cgi-bin//hello.cgi', 200, "hello\n"]) {
    my ($path, $status, $body) = @$_;
    my $r = $c->request(PATH_INFO => $path);
    ok $r->{status} == $status && (!defined $body || $r->{body} eq $body), "path $path" =~ s/\0/\\0/gr or diag explain $r;
}

subtest 'a changed script' => sub {
    $d->write('site/cgi-bin/hello.cgi', "$P$T print 'changed'; sub new_one { 1 }");
    is $c->request(PATH_INFO => '/cgi-bin/hello.cgi')->{body}, 'changed';
    $d->write('site/cgi-bin/hello.cgi', "${P}oops(");
    is $c->request(PATH_INFO => '/cgi-bin/hello.cgi')->{status}, 500;
    $d->write('site/cgi-bin/hello.cgi', "$P$T print 'mended';");
    is $c->request(PATH_INFO => '/cgi-bin/hello.cgi')->{body}, 'mended';
};

subtest 'a process for each request, asked for' => sub {
    for ([[persistent => 0], 'spec.perl.persistent is false'], [['per-request' => 'cgi-bin/n.cgi'], 'spec.perl.perRequest names it']) {
        my ($block, $why) = @$_;
        my $d = Serai::Driver->new(files => { 'cgi-bin/n.cgi' => "${P}package Other; $T print ++\$n;" },
            block => [script => "/cgi-bin\0cgi-bin", @$block, max => 1, idle => 60000]);
        is $d->word, 'ready';
        is $d->request(PATH_INFO => '/cgi-bin/n.cgi')->{body}, 1 for 1 .. 3;
        is 0 + (() = $d->log =~ /n\.cgi runs in a process of its own for each request: \Q$why\E$/mg), 1, "said once: $why";
    }
};

subtest 'a forked script sends while it prints' => sub {
    $d->write('site/cgi-bin/slow.cgi', "$P\$| = 1;\n$T print 'one'; open my \$f, '<', '../fifo'; <\$f>; print 'two';");
    POSIX::mkfifo("$d->{home}/site/fifo", 0600);
    $c->start(PATH_INFO => '/cgi-bin/slow.cgi');
    my ($type) = $c->frame;
    is $type, 'h', 'the head';
    my $got = '';
    while ($got !~ /one/) { my (undef, $part) = $c->frame; $got .= $part }
    is $got, 'one', 'the first part, before the script goes on';
    open my $f, '>', "$d->{home}/site/fifo";
    close $f;
    is $c->reply->{body}, 'two', 'the rest';
};

subtest 'a child that a script leaves behind does not hold the reply' => sub {
    $d->write('site/cgi-bin/left.cgi', "$P$T if (my \$p = fork) { print \$p; exit } close \$_ for *STDIN, *STDOUT, *STDERR; open my \$f, '<', '../fifo'; <\$f>;");
    like $c->request(PATH_INFO => '/cgi-bin/left.cgi')->{body}, qr/^\d+$/, 'the reply ends while the child waits';
    open my $f, '>', "$d->{home}/site/fifo";    # the child opens the other end, and ends
    close $f;
};

subtest 'gitweb' => sub {
    my $git = "$d->{home}/repos";
    system "mkdir -p $git && git init -q --bare $git/p.git && cd $git/p.git && t=\$(git hash-object -w -t tree /dev/null) && "
        . 'c=$(echo first | GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@x git commit-tree $t) && git update-ref HEAD $c';
    symlink '/usr/share/gitweb/gitweb.cgi', "$d->{home}/site/cgi-bin/gitweb.cgi";
    $d->write('gitweb.conf', "our \$projectroot = '$git'; our \$site_name = 'Test';");
    my %ask = ('' => qr/p\.git/, 'p=p.git;a=log' => qr/first/, 'p=p.git;a=summary' => qr/first/, 'p=nope.git' => qr/404 - No such project/);
    for my $n (1 .. 10) {
        for my $query (sort keys %ask) {
            my $r = $c->request(PATH_INFO => '/cgi-bin/gitweb.cgi', QUERY_STRING => $query);
            my $ok = ($r->{status} // 0) == ($query =~ /nope/ ? 404 : 200) && $r->{body} =~ $ask{$query};
            ok $ok, "$n: $query" or diag $r->{status}, substr($r->{body}, 0, 500), substr $d->log, -2000;
            return if !$ok;
        }
    }
    unlike $d->log, qr/gitweb\.cgi runs in a process/, 'within the worker';
};

my $log = $d->log;
unlike $log, qr/Serai\/\w+\.pm line/, 'no warning of our own' or diag grep { /Serai\/\w+\.pm line/ } split /^/, $log;

# The head of a script's output, piece by piece.
for (["A: 1\n\nrest", [200, ['A', 1]], 'rest'], ["A: 1\r\n\r\nrest", [200, ['A', 1]], 'rest'], ["A: 1\n", undef], ['', undef], ["HTTP/1.1 299 X\nA: 1\n\n", [299, ['A', 1]], ''],
    ["Status: 500 x\nlocation: /\n\n", [500, ['location', '/']], ''], ["A:\n\n", [200, ['A', '']], ''], ["A : 1\n\n", [200, ['A', 1]], '']) {
    my ($text, $want, $rest) = @$_;
    my $got = Serai::CGI::head(\(my $copy = $text));
    is_deeply [$got, defined $want ? $copy : undef], [$want, $rest], "head of " . Serai::Reply::shown($text);
}

$c->quit;
is $d->ended, 0;
done_testing;
