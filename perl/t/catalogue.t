# The scripts of the catalogue as plain CGI programs: what they show is escaped,
# what they store is whole, and they take nothing for what it is not.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Fcntl qw(LOCK_EX);
use File::Temp ();
use POSIX ();
use Test::More;
use Serai::Driver;

my $catalogue = "$FindBin::Bin/../../catalogue";
my $home = File::Temp::tempdir(CLEANUP => 1);
my %settings = (
    guestbook => { title => '<b>Guests</b> & co', intro => 'Write.', page => 2, closed => 'false' },
    counter => { start => 10, digits => 4, label => '"visits"' },
    formmail => { to => 'alice@example.com', from => '', subject => 'x', title => 'Form', thanks => 'Thanks', next => '' },
);

# ask runs a script; it returns status, head and body.
sub ask ($name, $method, $query, $body, %more) {
    my ($exit, $text) = run($name, $method, $query, $body, %more);
    is $exit, 0, "$name $method $query ends well";
    my ($head, $rest) = split /\n\n/, $text, 2;
    return ($head =~ /^Status: ([0-9]+)/m ? $1 : 200, $head, $rest);
}

# run is the same without a test, for children: exit status and output.
sub run ($name, $method, $query, $body, %more) {
    my %env = (
        PATH => '/usr/bin:/bin', GATEWAY_INTERFACE => 'CGI/1.1', REQUEST_METHOD => $method, QUERY_STRING => $query, SCRIPT_NAME => "/$name",
        SERAI_MOUNT => "/$name", SERAI_SITE => 'alice/shop', SERAI_DATA => "$home/$name", REMOTE_ADDR => '192.0.2.1', HTTP_HOST => 'alice.example',
        length $body ? (CONTENT_LENGTH => length $body, CONTENT_TYPE => 'application/x-www-form-urlencoded') : (),
        (map { ("SERAI_SETTING_\U$_" => $settings{$name}{$_}) } keys %{ $settings{$name} }), %more,
    );
    open my $in, '+>', undef or die;
    syswrite $in, $body;
    sysseek $in, 0, 0;
    my $pid = open(my $out, '-|') // die;
    if (!$pid) {
        open STDIN, '<&', $in;
        %ENV = %env;
        exec "$catalogue/$name/$name.cgi" or die "exec: $!";
    }
    my $text = join '', <$out>;
    close $out;
    return ($?, $text);
}
my $next = 0;
sub another () { return (REMOTE_ADDR => '198.51.100.' . ++$next) }

# the guest book
my ($status, $head, $text) = ask('guestbook', 'GET', '', '');
is $status, 200;
like $text, qr{<h1>&#60;b&#62;Guests&#60;/b&#62; &#38; co</h1>}, 'settings are escaped';
like $text, qr{Nobody has written yet};
like $head, qr{^Content-Security-Policy: default-src 'none'}m;
($status, $head) = ask('guestbook', 'POST', '', 'name=M%3Cscript%3E&text=one+%26+two%0D%0A%C3%A4%00%1b%22', another());
is $status, 303;
like $head, qr{^Location: /guestbook$}m;
($status, $head, $text) = ask('guestbook', 'GET', '', '');
like $text, qr{<h2>M&#60;script&#62;</h2>.*<p class="text">one &#38; two\n\xc3\xa4&#34;</p>}s, 'an entry is escaped, and UTF-8';
unlike $text, qr{<script|\x1b|\0}, 'nothing gets through';
is +(ask('guestbook', 'POST', '', "name=x&text=$_", another()))[0], 303 for 'two', 'three';
($status, $head, $text) = ask('guestbook', 'GET', '', '');
like $text, qr{three.*two.*Page 1 of 2.*page=2}s, 'the newest first, in pages';
like +(ask('guestbook', 'GET', 'page=2', ''))[2], qr{one &#38; two.*page=1}s;
unlike +(ask('guestbook', 'GET', 'page=2', ''))[2], qr{three};
like +(ask('guestbook', 'GET', 'page=-1;x', ''))[2], qr{three}, 'no page is the first';
for (['empty', 422, 'name=x&text=+%09'], ['too long', 422, 'text=' . 'x' x 2001], ['too large', 400, 'text=' . 'x' x 30000], ['a robot', 303, 'text=buy&website=http%3A%2F%2Fx'],
    ['no form', 400, 'x=y', CONTENT_TYPE => 'text/plain']) {
    my ($name, $want, $body, @more) = @$_;
    is +(ask('guestbook', 'POST', '', $body, another(), @more))[0], $want, $name;
}
my @who = another();
is +(ask('guestbook', 'POST', '', 'text=four', @who))[0], 303;
($status, $head, $text) = ask('guestbook', 'POST', '', 'text=five+%3C', @who);
is $status, 429, 'again at once';
like $text, qr{>five &#60;</textarea>}, 'the words are not lost';
is +(ask('guestbook', 'POST', '', 'text=x', another(), SERAI_SETTING_CLOSED => 'true'))[0], 403;
unlike +(ask('guestbook', 'GET', '', '', SERAI_SETTING_CLOSED => 'true'))[2], qr{<form};
is +(() = do { open my $f, '<', "$home/guestbook/entries" or die; <$f> }), 4, 'four entries in all';
# many at once
my @pids = map { my $n = $_; my $pid = fork; if (!$pid) { run('guestbook', 'POST', '', "text=at+once+$n", REMOTE_ADDR => "203.0.113.$n"); POSIX::_exit(0) } $pid } 1 .. 10;
waitpid $_, 0 for @pids;
is +(() = do { open my $f, '<', "$home/guestbook/entries" or die; grep { /\A\{.*\}\n\z/ } <$f> }), 14, 'entries at once are whole';

# the counter
($status, $head, $text) = ask('counter', 'GET', '', '');
like $head, qr{^Content-Type: image/svg\+xml}m;
like $text, qr{aria-label="11 &#34;visits&#34;".*>0011</text>}s;
like +(ask('counter', 'HEAD', '', ''))[2], qr{>0011<}, 'HEAD counts nothing';
is +(ask('counter', 'GET', '', '', PATH_INFO => '/text'))[2], "12\n";
is +(ask('counter', 'GET', 'page=other', '', PATH_INFO => '/text'))[2], "11\n", 'pages count apart';
is +(ask('counter', 'GET', "page=$_", ''))[0], 400, "no page: $_" for '../guestbook/entries', '%2e%2e', 'a/b', '', 'x' x 65, "a\n";
is +(ask('counter', 'GET', 'x=y', ''))[0], 400;
is +(ask('counter', 'GET', '', '', PATH_INFO => '/other'))[0], 404;
@pids = map { my $pid = fork; if (!$pid) { run('counter', 'GET', 'page=many', ''); POSIX::_exit(0) } $pid } 1 .. 20;
waitpid $_, 0 for @pids;
is +(ask('counter', 'GET', 'page=many', '', PATH_INFO => '/text'))[2], "31\n", 'visits at once are all counted';
like +(ask('counter', 'GET', 'page=n', '', SERAI_SETTING_DIGITS => '../x', SERAI_SETTING_START => '-1'))[2], qr{>1</text>}, 'settings that are none';

# Nobody writes while somebody else does: a script that finds a file locked
# waits, which the kernel tells, and is done when the file is free.
for (['counter', 'all', 'GET', ''], ['guestbook', 'recent', 'POST', 'text=x'], ['guestbook', 'entries', 'POST', 'text=y']) {
    my ($name, $file, $method, $body) = @$_;
    open my $held, '+<', "$home/$name/$file" or die "open $file: $!";
    flock $held, LOCK_EX or die;
    my $inode = (stat $held)[1];
    my $pid = fork // die;
    if (!$pid) { close $held; run($name, $method, '', $body, another()); POSIX::_exit(0) }
    my $waits;
    until ($waits || waitpid $pid, POSIX::WNOHANG()) {
        open my $locks, '<', '/proc/locks' or die;
        $waits = grep { /-> FLOCK .*:$inode / } <$locks>;
        select undef, undef, undef, 0.01;
    }
    ok $waits, "$name waits for $file";
    close $held;
    waitpid $pid, 0;
    $next++;
}

# the form mail, as far as nothing is sent
like +(ask('formmail', 'GET', '', ''))[2], qr{<form method="post" action="/formmail">};
for (['empty', 422, 'name=&message=+'], ['another site', 403, 'message=x', HTTP_ORIGIN => 'https://evil.example'], ['no origin to speak of', 403, 'message=x', HTTP_ORIGIN => 'null'],
    ['too large', 413, 'message=' . 'x' x 70000], ['too many fields', 413, join '&', map { "f$_=x" } 1 .. 51], ['a file', 415, 'x', CONTENT_TYPE => 'multipart/form-data; boundary=x'], ['a robot', 200, 'message=x&website=y']) {
    my ($name, $want, $body, @more) = @$_;
    is +(ask('formmail', 'POST', '', $body, @more))[0], $want, $name;
}
done_testing;
